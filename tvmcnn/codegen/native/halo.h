/* The zeros around the maps of an image in blocks, which convolutions read as their padding. */
#ifndef TVMCNN_HALO_H_
#define TVMCNN_HALO_H_

#include <stdint.h>
#include <string.h>

enum { STEP = 32 }; /* bytes: a pixel of a block is one of 8 floats, or several */

/* Lines side by side, often only two: of a memset of so many bytes GCC makes `rep stos`, which takes 30 cycles to start
 * (MobileNetV2's halos: 77 µs of 3500, now 44). */
static inline void tvmcnn_zero(char *at, int64_t bytes) {
  for (char *end = at + bytes; at < end; at += STEP) memset(at, 0, STEP);
}

typedef struct {
  int64_t maps, rows, columns, pixel; /* blocks, their size with the halo, and the bytes of a pixel */
  int64_t top, left, bottom, right;
} tvmcnn_maps;

/* Zeroes the halo of maps `from` to `to`, in memory one run before each row and one behind the last. */
static inline void tvmcnn_halo_of_maps(char *maps, tvmcnn_maps m, int64_t from, int64_t to, int64_t first, int64_t last) {
  int64_t row = m.columns * m.pixel, inner = m.rows - m.top - m.bottom;
  for (; from < to; ++from) {
    char *at = maps + (from * m.rows + m.top) * row;
    for (int64_t y = first; y < last; ++y) {
      if (y == 0)
        tvmcnn_zero(at - m.top * row, m.top * row + m.left * m.pixel);
      else
        tvmcnn_zero(at + y * row - m.right * m.pixel, (m.right + m.left) * m.pixel);
    }
    if (last == inner) tvmcnn_zero(at + inner * row - m.right * m.pixel, m.right * m.pixel + m.bottom * row);
  }
}

/* Tasks `begin` to `end` of a kernel zero as large a part of the halo: of the maps where they are cut by maps, of the rows
 * where they are cut by rows, so that the lines come from no other core's cache. */
static inline void tvmcnn_halo(char *maps, tvmcnn_maps m, int64_t begin, int64_t end, int64_t tasks) {
  tvmcnn_halo_of_maps(maps, m, m.maps * begin / tasks, m.maps * end / tasks, 0, m.rows - m.top - m.bottom);
}

static inline void tvmcnn_halo_by_rows(char *maps, tvmcnn_maps m, int64_t begin, int64_t end, int64_t tasks) {
  int64_t inner = m.rows - m.top - m.bottom;
  tvmcnn_halo_of_maps(maps, m, 0, m.maps, inner * begin / tasks, inner * end / tasks);
}

#endif /* TVMCNN_HALO_H_ */
