/* What every network for GPUs shares: launches, and what it keeps on each device. C++ for nvcc, without its library. */
#ifndef TVMCNN_GPU_H_
#define TVMCNN_GPU_H_

#include <cuda_runtime.h>
#include <math_constants.h>
#include <pthread.h>
#include <string.h>

#include "entry.h"

/* Words of the kernels that TVM writes. */
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

enum { TVMCNN_NO_DEVICE = 4, TVMCNN_NO_CODE = 5, TVMCNN_NO_MEMORY = 6, TVMCNN_FAILED = 7 };
enum { TVMCNN_DEVICES = 64 };

/* Weak, as those of entry.c. */
extern "C" void *TVMFFIEnvGetStream(int32_t device_type, int32_t device_id) __attribute__((weak));

#define TVMCNN_TRY(call)                                  \
  do {                                                    \
    cudaError_t tvmcnn_error = (call);                    \
    if (tvmcnn_error != cudaSuccess) return tvmcnn_error; \
  } while (0)

template <typename... Parameters, typename... Arguments>
static cudaError_t tvmcnn_launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream,
                                 Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/* What a call returns for an error of CUDA's. */
static inline int32_t tvmcnn_status(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return TVMCNN_OK;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver: return TVMCNN_NO_DEVICE;
    case cudaErrorNoKernelImageForDevice: return TVMCNN_NO_CODE;
    case cudaErrorMemoryAllocation: return TVMCNN_NO_MEMORY;
    default: return TVMCNN_FAILED;
  }
}

class tvmcnn_lock {
 public:
  explicit tvmcnn_lock(pthread_mutex_t *mutex) : mutex_(mutex) { pthread_mutex_lock(mutex); }
  ~tvmcnn_lock() { pthread_mutex_unlock(mutex_); }

 private:
  pthread_mutex_t *mutex_;
};

/* The weights of a library, which come to a device when a network is first there. */
class tvmcnn_weights {
 public:
  tvmcnn_weights(const char *data, size_t bytes) : data_(data), bytes_(bytes) {}

  cudaError_t on(int device, char **found) {
    tvmcnn_lock lock(&mutex_);
    if (there_[device] == nullptr) {
      char *memory;
      TVMCNN_TRY(cudaMalloc((void **)&memory, bytes_));
      TVMCNN_TRY(cudaMemcpy(memory, data_, bytes_, cudaMemcpyHostToDevice));
      there_[device] = memory;
    }
    *found = there_[device];
    return cudaSuccess;
  }

 private:
  const char *data_;
  size_t bytes_;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  char *there_[TVMCNN_DEVICES] = {};
};

/* A network of COUNT inputs and outputs. On each device it has one arena, and the launches of the last call as a graph.
 * Calls may come from any thread and in any stream: in its own stream each waits until the one before has left the
 * arena. */
template <int COUNT>
class tvmcnn_network {
 public:
  typedef cudaError_t (*Chain)(char *weights, char *arena, void *const *buffers, cudaStream_t stream);

  tvmcnn_network(tvmcnn_weights *weights, size_t arena_bytes, int launches, Chain chain, const size_t *bytes)
      : weights_(weights), arena_bytes_(arena_bytes), launches_(launches), chain_(chain), bytes_(bytes) {}

  /* Runs on device memory, in `stream`. */
  cudaError_t run(void *const *buffers, cudaStream_t stream) {
    tvmcnn_lock lock(&mutex_);
    Device *device;
    cudaStreamCaptureStatus capturing;
    TVMCNN_TRY(here(&device));
    TVMCNN_TRY(cudaStreamIsCapturing(stream, &capturing));
    if (capturing != cudaStreamCaptureStatusNone) return chain_(device->weights, device->arena, buffers, stream);
    if (stream != device->last) TVMCNN_TRY(cudaStreamWaitEvent(stream, device->left, 0));
    device->last = stream;
    if (launches_ < 2) {
      TVMCNN_TRY(chain_(device->weights, device->arena, buffers, stream));
    } else {
      if (device->graph == nullptr || memcmp(device->buffers, buffers, sizeof device->buffers) != 0)
        TVMCNN_TRY(capture(device, buffers));
      TVMCNN_TRY(cudaGraphLaunch(device->graph, stream));
    }
    return cudaEventRecord(device->left, stream);
  }

  /* The same on the host's memory, staged behind the arena, until all is done. The first `inputs` are read. */
  cudaError_t run_host(void *const *buffers, int inputs) {
    tvmcnn_lock lock(&host_);
    Device *device;
    {
      tvmcnn_lock inner(&mutex_);
      TVMCNN_TRY(here(&device));
    }
    void *staged[COUNT];
    stage(device, staged);
    for (int i = 0; i < inputs; ++i)
      TVMCNN_TRY(cudaMemcpyAsync(staged[i], buffers[i], bytes_[i], cudaMemcpyHostToDevice, device->own));
    TVMCNN_TRY(run(staged, device->own));
    for (int i = inputs; i < COUNT; ++i)
      TVMCNN_TRY(cudaMemcpyAsync(buffers[i], staged[i], bytes_[i], cudaMemcpyDeviceToHost, device->own));
    return cudaStreamSynchronize(device->own);
  }

  /* On the memory of another device than the current one, in the stream that libtvm_ffi's caller works in. */
  cudaError_t run_there(void *const *buffers, int index) {
    int before;
    TVMCNN_TRY(cudaGetDevice(&before));
    TVMCNN_TRY(cudaSetDevice(index));
    void *stream = TVMFFIEnvGetStream != NULL ? TVMFFIEnvGetStream(kDLCUDA, index) : NULL;
    cudaError_t error = run(buffers, (cudaStream_t)stream);
    cudaError_t back = cudaSetDevice(before);
    return error != cudaSuccess ? error : back;
  }

  /* µs of one launch, of `repeat` in a row on whatever the staged memory holds, by the device's clock. */
  cudaError_t time(Chain launch, int repeat, float *spent) {
    tvmcnn_lock lock(&mutex_);
    Device *device;
    void *buffers[COUNT];
    cudaEvent_t begin, end;
    TVMCNN_TRY(here(&device));
    stage(device, buffers);
    TVMCNN_TRY(cudaEventCreate(&begin));
    TVMCNN_TRY(cudaEventCreate(&end));
    TVMCNN_TRY(cudaEventRecord(begin, device->own));
    for (int i = 0; i < repeat; ++i) TVMCNN_TRY(launch(device->weights, device->arena, buffers, device->own));
    TVMCNN_TRY(cudaEventRecord(end, device->own));
    TVMCNN_TRY(cudaStreamSynchronize(device->own));
    TVMCNN_TRY(cudaEventElapsedTime(spent, begin, end));
    *spent *= 1000.0f / (float)repeat;
    TVMCNN_TRY(cudaEventDestroy(begin));
    return cudaEventDestroy(end);
  }

 private:
  struct Device {
    char *weights, *arena;
    cudaStream_t own, last; /* for capture and calls from the host; of the last call */
    cudaEvent_t left;       /* when the last call has left the arena: made last of all */
    cudaGraphExec_t graph;
    void *buffers[COUNT]; /* that the graph reads and writes */
  };

  static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

  /* Where the host's inputs and outputs lie on the device. */
  void stage(const Device *device, void **staged) const {
    char *next = device->arena + arena_bytes_;
    for (int i = 0; i < COUNT; next += aligned(bytes_[i++])) staged[i] = next;
  }

  /* The current device, with the weights on it. */
  cudaError_t here(Device **found) {
    int index;
    TVMCNN_TRY(cudaGetDevice(&index));
    if (index >= TVMCNN_DEVICES) return cudaErrorNoDevice;
    Device *device = *found = &devices_[index];
    if (device->left != nullptr) return cudaSuccess;
    size_t staging = 0;
    for (int i = 0; i < COUNT; ++i) staging += aligned(bytes_[i]);
    TVMCNN_TRY(weights_->on(index, &device->weights));
    if (device->arena == nullptr) TVMCNN_TRY(cudaMalloc((void **)&device->arena, arena_bytes_ + staging));
    if (device->own == nullptr) TVMCNN_TRY(cudaStreamCreateWithFlags(&device->own, cudaStreamNonBlocking));
    return cudaEventCreateWithFlags(&device->left, cudaEventDisableTiming);
  }

  /* The launches with these buffers as the device's graph: the one there is gets new pointers, if there is one. */
  cudaError_t capture(Device *device, void *const *buffers) {
    cudaGraph_t graph;
    TVMCNN_TRY(cudaStreamBeginCapture(device->own, cudaStreamCaptureModeThreadLocal));
    cudaError_t error = chain_(device->weights, device->arena, buffers, device->own);
    TVMCNN_TRY(cudaStreamEndCapture(device->own, &graph));
    cudaGraphExecUpdateResultInfo info;
    if (error == cudaSuccess && device->graph != nullptr) error = cudaGraphExecUpdate(device->graph, graph, &info);
    if (error == cudaSuccess && device->graph == nullptr) error = cudaGraphInstantiate(&device->graph, graph, 0);
    cudaGraphDestroy(graph);
    if (error == cudaSuccess) memcpy(device->buffers, buffers, sizeof device->buffers);
    return error;
  }

  tvmcnn_weights *weights_;
  size_t arena_bytes_;
  int launches_;
  Chain chain_;
  const size_t *bytes_; /* of each input and output */
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER, host_ = PTHREAD_MUTEX_INITIALIZER;
  Device devices_[TVMCNN_DEVICES] = {};
};

#endif /* TVMCNN_GPU_H_ */
