/* The machine's own limit: fused multiply-adds that wait for nothing. Compiled for the target. */
#include <stdint.h>

#ifdef __AVX512F__
enum { BYTES = 64 };
#else
enum { BYTES = 32 };
#endif
typedef float vector __attribute__((vector_size(BYTES)));

/* Independent accumulators: the latency of 4 cycles times two units, and some to spare; 16 registers hold them. */
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
enum { CHAINS = 12 };
/* The empty asm keeps each in its register, and the loop from being folded. */
#define BEGIN(c) vector sum##c = {0};
#define STEP(c) sum##c = sum##c * x + y; __asm__("" : "+v"(sum##c));
#define ADD(c) total += sum##c;

/* FLOP of `count` rounds, which it does; `sink` gets what nobody needs. */
double tvmcnn_peak(int64_t count, float* sink) {
  vector x = {0}, y = {0}, total = {0};
  x += 0.999f, y += 0.001f;
  EACH(BEGIN)
  for (int64_t n = 0; n < count; ++n) {
    EACH(STEP)
  }
  EACH(ADD)
  *sink = total[0];
  return 2.0 * CHAINS * (BYTES / sizeof(float)) * (double)count;
}
