/* What is around the maps of an image in blocks, which convolutions read as their padding: zeros, or zero points. */
#ifndef TVMCNN_HALO_H_
#define TVMCNN_HALO_H_

#include <stdint.h>
#include <string.h>

typedef struct {
  int64_t maps, rows, columns, pixel; /* blocks, their size with the halo, and the bytes of a pixel */
  int64_t top, left, bottom, right;
  int fill; /* of every byte */
} tvmcnn_maps;

/* Pixels side by side, often only two: of a memset of so many bytes GCC makes `rep stos`, which takes 30 cycles to start
 * (MobileNetV2's halos: 77 µs of 3500, now 44). A pixel of floats is 32 bytes or several times as many. */
static inline void tvmcnn_fill(char *at, int64_t bytes, tvmcnn_maps m) {
  char *end = at + bytes;
  if (m.pixel % 32 == 0)
    for (; at < end; at += 32) memset(at, m.fill, 32);
  else if (m.pixel % 16 == 0)
    for (; at < end; at += 16) memset(at, m.fill, 16);
  else
    for (; at < end; at += 4) memset(at, m.fill, 4);
}

/* Fills the halo of maps `from` to `to`, in memory one run before each row and one behind the last. */
static inline void tvmcnn_halo_of_maps(char *maps, tvmcnn_maps m, int64_t from, int64_t to, int64_t first, int64_t last) {
  int64_t row = m.columns * m.pixel, inner = m.rows - m.top - m.bottom;
  for (; from < to; ++from) {
    char *at = maps + (from * m.rows + m.top) * row;
    for (int64_t y = first; y < last; ++y) {
      if (y == 0)
        tvmcnn_fill(at - m.top * row, m.top * row + m.left * m.pixel, m);
      else
        tvmcnn_fill(at + y * row - m.right * m.pixel, (m.right + m.left) * m.pixel, m);
    }
    if (last == inner) tvmcnn_fill(at + inner * row - m.right * m.pixel, m.right * m.pixel + m.bottom * row, m);
  }
}

/* Tasks `begin` to `end` of a kernel fill as large a part of the halo: of the maps where they are cut by maps, of the rows
 * where they are cut by rows, so that the lines come from no other core's cache. */
static inline void tvmcnn_halo(char *maps, tvmcnn_maps m, int64_t begin, int64_t end, int64_t tasks) {
  tvmcnn_halo_of_maps(maps, m, m.maps * begin / tasks, m.maps * end / tasks, 0, m.rows - m.top - m.bottom);
}

static inline void tvmcnn_halo_by_rows(char *maps, tvmcnn_maps m, int64_t begin, int64_t end, int64_t tasks) {
  int64_t inner = m.rows - m.top - m.bottom;
  tvmcnn_halo_of_maps(maps, m, 0, m.maps, inner * begin / tasks, inner * end / tasks);
}

#endif /* TVMCNN_HALO_H_ */
