/* The part of the CUDA runtime that a library of tvmcnn uses, on the CPU: what ships is compiled by g++ and run here.
 *
 * Blocks run one after another. The threads of a block are fibers of one thread, each run until it waits at a barrier or
 * a shuffle, in the order that CUDA_SHIM_ORDER says: 0 ascending, 1 descending, more: shuffled by that seed. A barrier
 * that not all threads of a block reach, a launch that no GPU allows and an index outside a shared or local array
 * (-fsanitize=bounds) end the process; so does one outside device memory, which ends at a page that nobody may touch.
 * Device memory is filled with NaNs.
 The judge of races is in races.h. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shim_shared"))) /* blocks run one by one */
#define __restrict__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
/* The sum of the products of four bytes of a word each, and of what is added to them. */
template <typename Byte, typename Word>
inline Word shim_dp4a(Word one, Word other, Word sum) {
  for (int bits = 0; bits < 32; bits += 8)
    sum += static_cast<Word>(static_cast<Byte>(one >> bits)) * static_cast<Word>(static_cast<Byte>(other >> bits));
  return sum;
}
static inline int __dp4a(int one, int other, int sum) { return shim_dp4a<int8_t>(one, other, sum); }
static inline unsigned __dp4a(unsigned one, unsigned other, unsigned sum) {
  return shim_dp4a<uint8_t>(one, other, sum);
}
using std::max;
using std::min;

namespace shim {

inline unsigned current; /* thread of the block */

[[noreturn]] inline void fail(const char *what) {
  fprintf(stderr, "cuda shim: %s\n", what);
  fflush(stderr);
  abort();
}

}  // namespace shim

#include "races.h"

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

namespace shim {

/* Saves the callee's registers on this stack and goes on with the other: 20 ns, where swapcontext calls the kernel. */
extern "C" void tvmcnn_shim_switch(void **from, void *to);
asm(R"(
.text
.weak tvmcnn_shim_switch
tvmcnn_shim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

constexpr size_t STACK = 64 << 10;

struct Fiber {
  std::vector<char> stack = std::vector<char>(STACK);
  void *at = nullptr;
  bool done = false;
  uint3 index{};
};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

inline std::vector<Fiber> fibers;
inline std::function<void()> kernel;
inline void *scheduler;
inline int running;
inline bool moved;
inline dim3 grid, block;
inline uint3 block_index;
inline Barrier all, warps[32];
inline uint64_t lanes[1024];

inline void leave() {
  unsigned me = current;
  tvmcnn_shim_switch(&fibers[me].at, scheduler);
  current = me;
}

inline void run() {
  kernel();
  fibers[current].done = true;
  running--;
  moved = true;
  leave();
}

/* Waits until as many threads as `count` says are here. */
template <typename Count>
void wait(Barrier &barrier, Count count) {
  unsigned generation = barrier.generation;
  barrier.arrived++;
  moved = true;
  while (barrier.generation == generation) {
    if (barrier.arrived >= count()) {
      barrier.arrived = 0;
      barrier.generation++;
      now++;
      return;
    }
    leave();
  }
}

inline int alive(unsigned mask, unsigned warp) {
  int count = 0;
  for (unsigned lane = 0; lane < 32; lane++) {
    unsigned thread = warp * 32 + lane;
    count += thread < fibers.size() && !fibers[thread].done && (mask >> lane & 1);
  }
  return count;
}

inline void start(Fiber &fiber) {
  fiber.done = false;
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.data() + fiber.stack.size()) & ~uintptr_t(63);
  void **stack = reinterpret_cast<void **>(top) - 1; /* where a call would have left the stack */
  *--stack = reinterpret_cast<void *>(run);
  stack -= 6;
  memset(stack, 0, 6 * sizeof(void *));
  fiber.at = stack;
}

inline void launch(dim3 blocks, dim3 threads, std::function<void()> body) {
  unsigned count = threads.x * threads.y * threads.z;
  if (count == 0 || count > 1024 || threads.z > 64 || blocks.y > 65535 || blocks.z > 65535 || blocks.x == 0)
    fail("no GPU launches so many blocks or threads");
  const char *word = getenv("CUDA_SHIM_ORDER");
  unsigned seed = word ? static_cast<unsigned>(atoi(word)) : 0;
  std::mt19937 random(seed);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (seed == 1) std::reverse(order.begin(), order.end());
  fibers.resize(count);
  kernel = std::move(body);
  grid = blocks, block = threads;
  launch_began = ++now;
  know_shared();
  for (unsigned i = 0; i < blocks.x * blocks.y * blocks.z; i++) {
    block_index = {i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y};
    if (seed > 1) std::shuffle(order.begin(), order.end(), random);
    running = static_cast<int>(count);
    block_began = ++now;
    all = Barrier();
    for (auto &warp : warps) warp = Barrier();
    for (unsigned t = 0; t < count; t++) {
      fibers[t].index = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
      start(fibers[t]);
    }
    while (running) {
      moved = false;
      for (unsigned t : order) {
        if (fibers[t].done) continue;
        current = t;
        judging = true;
        tvmcnn_shim_switch(&scheduler, fibers[t].at);
        judging = false;
      }
      if (!moved) fail("threads of a block wait at different barriers");
    }
    if (all.arrived) fail("a thread ended where others wait at a barrier");
  }
}

/* What lane `source` of this warp holds; this lane's own value where there is no such lane. */
template <typename T>
T shuffle(unsigned mask, T value, int source) {
  unsigned thread = current, warp = thread / 32;
  memcpy(&lanes[thread], &value, sizeof value);
  wait(warps[warp], [=] { return alive(mask, warp); });
  unsigned other = warp * 32 + static_cast<unsigned>(source);
  if (source >= 0 && source < 32 && other < fibers.size()) memcpy(&value, &lanes[other], sizeof value);
  wait(warps[warp], [=] { return alive(mask, warp); });
  return value;
}

inline int lane() { return static_cast<int>(current % 32); }

}  // namespace shim


#define threadIdx (shim::fibers[shim::current].index)
#define blockIdx (shim::block_index)
static dim3 &blockDim = shim::block, &gridDim = shim::grid;

/* Every thread must wait at the same barrier of the text. */
static inline void shim_barrier(int line) {
  static int waiting;
  if (shim::all.arrived && waiting != line) shim::fail("threads of a block wait at different barriers");
  waiting = line;
  shim::wait(shim::all, [] { return shim::running; });
}
#define __syncthreads() shim_barrier(__LINE__)
static inline void __syncwarp(unsigned mask = ~0u) { shim::shuffle(mask, 0, -1); }
static inline unsigned __activemask() {
  unsigned mask = 0, warp = shim::current / 32;
  for (unsigned lane = 0; lane < 32; lane++) {
    unsigned thread = warp * 32 + lane;
    if (thread < shim::fibers.size() && !shim::fibers[thread].done) mask |= 1u << lane;
  }
  return mask;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return shim::shuffle(mask, value, shim::lane() / width * width + source % width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int lane = shim::lane(), source = lane + static_cast<int>(by);
  return shim::shuffle(mask, value, lane % width + static_cast<int>(by) < width ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int lane = shim::lane();
  return shim::shuffle(mask, value, lane % width >= static_cast<int>(by) ? lane - static_cast<int>(by) : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  (void)width;
  return shim::shuffle(mask, value, shim::lane() ^ by);
}

/* nvcc takes it between __shared__ and the type, g++ does not. */
#define alignas(bytes) __attribute__((aligned(bytes)))

/* ---- the host's side --------------------------------------------------------------------------------------------- */

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };

struct shim_graph {
  std::vector<std::function<void()>> launches;
};
struct shim_stream {
  shim_graph *captured = nullptr;
};
struct shim_event {};
typedef shim_stream *cudaStream_t;
typedef shim_graph *cudaGraph_t, *cudaGraphExec_t;
typedef shim_event *cudaEvent_t;
struct cudaGraphExecUpdateResultInfo {};
struct cudaFuncAttributes {};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void *attrs;
  unsigned numAttrs;
};

/* The error that $CUDA_SHIM_ERROR names by its number. */
inline cudaError_t shim_error() {
  const char *word = getenv("CUDA_SHIM_ERROR");
  return word ? static_cast<cudaError_t>(atoi(word)) : cudaSuccess;
}

inline cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return shim_error();
}
inline const char *cudaGetErrorString(cudaError_t) { return "an error of the shim"; }
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  *stream = new shim_stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
  if (event == nullptr) shim::fail("a stream waits for an event that is none");
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  *event = new shim_event;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, const void *) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
  *status = stream && stream->captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->captured = new shim_graph;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = std::exchange(stream->captured, nullptr);
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long) {
  *made = new shim_graph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecUpdate(cudaGraphExec_t made, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *) {
  if (made->launches.size() != graph->launches.size()) shim::fail("a graph is updated by one of another shape");
  *made = *graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (auto &launch : graph->launches) launch();
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

/* Memory of NaNs that ends where nobody may read or write. */
inline cudaError_t cudaMalloc(void **memory, size_t bytes) {
  size_t page = 4096, size = (bytes + page - 1) / page * page;
  char *whole = static_cast<char *>(
      mmap(nullptr, size + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (whole == MAP_FAILED) return cudaErrorMemoryAllocation;
  memset(whole, 0xff, size + 2 * page);
  mprotect(whole, page, PROT_NONE);
  mprotect(whole + page + size, page, PROT_NONE);
  *memory = whole + page + (size - bytes) / 64 * 64;
  shim::know(*memory, bytes, false);
  return cudaSuccess;
}

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*function)(P...), A... arguments) {
  dim3 blocks = config->gridDim, threads = config->blockDim;
  auto launch = [=] { shim::launch(blocks, threads, [=] { function(arguments...); }); };
  if (config->stream && config->stream->captured)
    config->stream->captured->launches.push_back(launch);
  else
    launch();
  return cudaSuccess;
}
