/* The zeros around the maps of an image in blocks, which convolutions read as their padding. */
#ifndef TVMCNN_HALO_H_
#define TVMCNN_HALO_H_

#include <stdint.h>
#include <string.h>

/* Zeroes the halo of `maps` blocks, each of `rows` x `columns` pixels of `pixel` bytes with the halo in them. */
static inline void tvmcnn_halo(char *at, int64_t maps, int64_t rows, int64_t columns, int64_t pixel, int64_t top,
                               int64_t left, int64_t bottom, int64_t right) {
  int64_t row = columns * pixel;
  for (int64_t map = 0; map < maps; ++map, at += rows * row) {
    memset(at, 0, (size_t)(top * row + left * pixel));
    for (int64_t y = top; y + 1 < rows - bottom; ++y) /* the right end of one row and the left end of the next */
      memset(at + (y + 1) * row - right * pixel, 0, (size_t)((right + left) * pixel));
    memset(at + (rows - bottom) * row - right * pixel, 0, (size_t)(bottom * row + right * pixel));
  }
}

#endif /* TVMCNN_HALO_H_ */
