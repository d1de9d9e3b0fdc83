/* What every compiled network shares: its statuses, and reading the arguments of a tvm-ffi call. */
#ifndef TVMCNN_ENTRY_H_
#define TVMCNN_ENTRY_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tvm/ffi/c_api.h>

enum { TVMCNN_OK = 0, TVMCNN_NULL_ARGUMENT = 1, TVMCNN_CPU_TOO_OLD = 2, TVMCNN_NO_SUCH_STEP = 3 };

#define TVMCNN_PUBLIC __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* What a call returned, in words. */
const char* tvmcnn_message(int32_t status);

/* Raises an error in the process's libtvm_ffi, if it has one; returns -1. */
int tvmcnn_raise(const char* kind, const char* message);

/* `result` becomes None; returns 0. */
int tvmcnn_nothing(TVMFFIAny* result);

/* `result` becomes a function that calls `call` with a copy of `self`; returns 0, or raises. */
int tvmcnn_function(TVMFFISafeCallType call, const void* self, size_t bytes, TVMFFIAny* result);

/* The tensor that an argument is, NULL for one that is none. */
const DLTensor* tvmcnn_tensor(const TVMFFIAny* argument);

/* The data of one tensor of exactly this device, type and shape, C-contiguous and aligned to its elements; else NULL.
 * A tensor without elements may have no data either: then any address that is not NULL. */
void* tvmcnn_data(const TVMFFIAny* argument, int32_t device, int code, int bits, int32_t rank, const int64_t* shape);

#ifdef __cplusplus
}
#endif

#endif /* TVMCNN_ENTRY_H_ */
