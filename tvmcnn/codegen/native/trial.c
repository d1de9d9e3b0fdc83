/* The functions of a library of trials, through tvm-ffi: in a process of this machine or of another, over TVM's RPC. */
#define _POSIX_C_SOURCE 199309L
#include "trial.h"

#include <cpuid.h>
#include <string.h>
#include <time.h>

#include "entry.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A tensor of bytes of any length. */
static char* bytes_of(const TVMFFIAny* argument, int64_t* size) {
  const DLTensor* tensor = tvmcnn_tensor(argument);
  if (tensor == NULL || tensor->device.device_type != kDLCPU) return NULL;
  if (tensor->ndim != 1 || tensor->dtype.bits != 8) return NULL;
  *size = tensor->shape[0];
  return (char*)tensor->data + tensor->byte_offset;
}

static int number(TVMFFIAny* result, double value) {
  result->type_index = kTVMFFIFloat;
  result->zero_padding = 0;
  result->v_float64 = value;
  return 0;
}

static tvmcnn_trial* trial_of(const TVMFFIAny* argument) {
  if (argument->type_index != kTVMFFIInt || argument->v_int64 < 0 || argument->v_int64 >= tvmcnn_trial_count)
    return NULL;
  return &tvmcnn_trials[argument->v_int64];
}

/* run(trial, memory): one call. */
TVMCNN_PUBLIC int __tvm_ffi_run(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  int64_t size;
  (void)self;
  tvmcnn_trial* trial = count == 2 ? trial_of(&args[0]) : NULL;
  char* memory = trial != NULL ? bytes_of(&args[1], &size) : NULL;
  if (memory == NULL) return tvmcnn_raise("TypeError", "run takes the number of a trial and a tensor of bytes");
  trial->call(memory, 0);
  return tvmcnn_nothing(result);
}

/* time(trial, memory, seconds): the mean µs of the calls that take about so long together. */
TVMCNN_PUBLIC int __tvm_ffi_time(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  int64_t size, done = 0, step = 1;
  (void)self;
  tvmcnn_trial* trial = count == 3 ? trial_of(&args[0]) : NULL;
  char* memory = trial != NULL ? bytes_of(&args[1], &size) : NULL;
  if (memory == NULL || args[2].type_index != kTVMFFIFloat)
    return tvmcnn_raise("TypeError", "time takes the number of a trial, a tensor of bytes and the seconds");
  const double seconds = args[2].v_float64;
  double spent = 0;
  for (const double start = now(); spent < seconds; spent = now() - start) {
    for (int64_t i = 0; i < step; ++i) {
      trial->call(memory, (size_t)trial->turn * trial->stride);
      trial->turn = trial->turn + 1 < trial->copies ? trial->turn + 1 : 0;
    }
    done += step;
    if (spent < seconds / 16) step *= 2; /* looking at the clock takes 25 ns, some kernels take 200 */
  }
  return number(result, spent / (double)done * 1e6);
}

/* fill(memory): ordinary numbers everywhere, in pages of their own: what nobody wrote is one page of zeros. */
TVMCNN_PUBLIC int __tvm_ffi_fill(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  int64_t size;
  (void)self;
  char* memory = count == 1 ? bytes_of(&args[0], &size) : NULL;
  if (memory == NULL) return tvmcnn_raise("TypeError", "fill takes a tensor of bytes");
  for (int64_t i = 0; i < size / 4; ++i) ((float*)memory)[i] = 0.01f;
  return tvmcnn_nothing(result);
}

/* peak(seconds): GFLOP/s of fused multiply-adds. */
TVMCNN_PUBLIC int __tvm_ffi_peak(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  (void)self;
  if (count != 1 || args[0].type_index != kTVMFFIFloat) return tvmcnn_raise("TypeError", "peak takes the seconds");
  float sink;
  double flop = 0, spent = 0;
  for (const double start = now(); spent < args[0].v_float64; spent = now() - start) flop += tvmcnn_peak(10000, &sink);
  return number(result, flop / spent / 1e9);
}

/* machine(name): writes the CPU's name to a tensor of at least 48 bytes; true if it can run what is compiled here. */
TVMCNN_PUBLIC int __tvm_ffi_machine(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  int64_t size;
  (void)self;
  char* name = count == 1 ? bytes_of(&args[0], &size) : NULL;
  if (name == NULL || size < 48) return tvmcnn_raise("TypeError", "machine takes a tensor of at least 48 bytes");
  uint32_t words[12] = {0};
  for (uint32_t i = 0; i < 3; ++i)
    __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  memcpy(name, words, sizeof words);
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = tvmcnn_trial_supported();
  return 0;
}
