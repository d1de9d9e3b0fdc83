/* Warp matrix functions on the CPU. A lane has a share of each tile in row-major order, whatever the layout in memory;
 * of TF32 the elements must be rounded before they are loaded, as the kernels do: a bit beyond ends the process. */
#pragma once
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

/* To the nearest of 10 bits of mantissa, ties away from zero. */
inline float __float_to_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits = (bits + 0x1000u) & 0xffffe000u;
  memcpy(&value, &bits, 4);
  return value;
}

template <typename Use, int M, int N, int K>
struct Shape;
template <int M, int N, int K>
struct Shape<matrix_a, M, N, K> {
  enum { rows = M, columns = K };
};
template <int M, int N, int K>
struct Shape<matrix_b, M, N, K> {
  enum { rows = K, columns = N };
};
template <int M, int N, int K>
struct Shape<accumulator, M, N, K> {
  enum { rows = M, columns = N };
};

template <typename T>
struct Stored {
  typedef T type;
};
template <>
struct Stored<precision::tf32> {
  typedef float type;
};

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  enum { rows = Shape<Use, M, N, K>::rows, columns = Shape<Use, M, N, K>::columns, num_elements = rows * columns / 32 };
  typename Stored<T>::type x[num_elements];
};

template <typename F, typename T>
void fill_fragment(F &made, T value) {
  for (auto &each : made.x) each = value;
}

/* Addresses and rows as CUDA wants them: 32 bytes, and 16. */
template <typename P>
void check_alignment(const P *from, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(from) % 32 || stride * sizeof(P) % 16) shim::fail("a fragment is not aligned");
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename P>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &made, const P *from, unsigned stride) {
  static_assert(std::is_same<Layout, row_major>::value, "rows lie side by side");
  static_assert(M == 16 && N == 16 && K == (std::is_same<T, precision::tf32>::value ? 8 : 16), "a tile of CUDA's");
  check_alignment(from, stride);
  for (int e = 0; e < made.num_elements; e++) {
    int at = shim::lane() * made.num_elements + e;
    made.x[e] = from[at / made.columns * stride + at % made.columns];
    if constexpr (std::is_same<T, precision::tf32>::value)
      if (memcmp(&made.x[e], &from[at / made.columns * stride + at % made.columns], 4) ||
          __float_to_tf32(made.x[e]) != made.x[e])
        if (made.x[e] == made.x[e]) shim::fail("an element is not rounded to TF32");
  }
  __syncwarp();
}

template <int M, int N, int K, typename T, typename P>
void store_matrix_sync(P *to, const fragment<accumulator, M, N, K, T> &made, unsigned stride, layout_t layout) {
  if (layout != mem_row_major) shim::fail("rows lie side by side");
  check_alignment(to, stride);
  for (int e = 0; e < made.num_elements; e++) {
    int at = shim::lane() * made.num_elements + e;
    to[at / N * stride + at % N] = made.x[e];
  }
  __syncwarp();
}

/* Every lane sees the fragments of all: where they are is exchanged, then each makes its share of the sum. */
template <int M, int N, int K, typename T, typename L1, typename L2>
void mma_sync(fragment<accumulator, M, N, K, float> &made, const fragment<matrix_a, M, N, K, T, L1> &left,
              const fragment<matrix_b, M, N, K, T, L2> &right, const fragment<accumulator, M, N, K, float> &added) {
  static const void *lefts[32][32], *rights[32][32];
  unsigned warp = shim::current / 32, lane = shim::current % 32;
  lefts[warp][lane] = &left, rights[warp][lane] = &right;
  __syncwarp();
  auto element = [](const auto &like, const void *const *all, int at) {
    auto share = static_cast<decltype(&like)>(all[at / like.num_elements]);
    return static_cast<float>(share->x[at % like.num_elements]);
  };
  float sums[fragment<accumulator, M, N, K, float>::num_elements];
  for (int e = 0; e < made.num_elements; e++) {
    int at = static_cast<int>(lane) * made.num_elements + e;
    sums[e] = added.x[e];
    for (int k = 0; k < K; k++)
      sums[e] += element(left, lefts[warp], at / N * K + k) * element(right, rights[warp], k * N + at % N);
  }
  __syncwarp();
  memcpy(made.x, sums, sizeof sums);
}

}  // namespace wmma
}  // namespace nvcuda
