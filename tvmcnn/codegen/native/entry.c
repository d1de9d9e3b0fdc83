/* Reads the arguments of a tvm-ffi call without linking libtvm_ffi: compiled once, and linked into every library. */
#include "entry.h"

#include <stdlib.h>
#include <string.h>

const char* tvmcnn_message(int32_t status) {
  switch (status) {
    case 0: return "all is well";
    case 1: return "an argument is NULL";
    case 2: return "this CPU lacks instructions that the library uses";
    case 3: return "the network has no such step";
    case 4: return "there is no NVIDIA driver or GPU";
    case 5: return "the library has no code for this GPU";
    case 6: return "the GPU has no memory left";
    case 7: return "CUDA reports an error";
    default: return "no status of a network";
  }
}

/* Weak: there in a process that has loaded libtvm_ffi, null in a plain C program, which never calls these entries. */
extern void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) __attribute__((weak));
extern int TVMFFIFunctionCreate(void* self, TVMFFISafeCallType call, void (*deleter)(void* self),
                                TVMFFIObjectHandle* out) __attribute__((weak));

int tvmcnn_raise(const char* kind, const char* message) {
  if (TVMFFIErrorSetRaisedFromCStr != NULL) TVMFFIErrorSetRaisedFromCStr(kind, message);
  return -1;
}

int tvmcnn_nothing(TVMFFIAny* result) {
  result->type_index = kTVMFFINone;
  result->zero_padding = 0;
  result->v_int64 = 0;
  return 0;
}

int tvmcnn_function(TVMFFISafeCallType call, const void* self, size_t bytes, TVMFFIAny* result) {
  void* copy = malloc(bytes);
  TVMFFIObjectHandle function;
  if (copy == NULL) return tvmcnn_raise("MemoryError", "no memory for a bound network");
  memcpy(copy, self, bytes);
  if (TVMFFIFunctionCreate(copy, call, free, &function) != 0) {
    free(copy);
    return -1;
  }
  result->type_index = kTVMFFIFunction;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)function;
  return 0;
}

const DLTensor* tvmcnn_tensor(const TVMFFIAny* argument) {
  if (argument->type_index == kTVMFFIDLTensorPtr) return (const DLTensor*)argument->v_ptr;
  if (argument->type_index != kTVMFFITensor) return NULL;
  return (const DLTensor*)((const char*)argument->v_obj + sizeof(TVMFFIObject));
}

void* tvmcnn_data(const TVMFFIAny* argument, int32_t device, int code, int bits, int32_t rank, const int64_t* shape) {
  const DLTensor* tensor = tvmcnn_tensor(argument);
  if (tensor == NULL || (int32_t)tensor->device.device_type != device || tensor->ndim != rank) return NULL;
  if (tensor->dtype.code != code || tensor->dtype.bits != bits || tensor->dtype.lanes != 1) return NULL;
  int64_t stride = 1;
  for (int32_t axis = rank - 1; axis >= 0; --axis) {
    if (tensor->shape[axis] != shape[axis]) return NULL;
    if (tensor->strides != NULL && shape[axis] != 1 && tensor->strides[axis] != stride) return NULL;
    stride *= shape[axis];
  }
  if (stride == 0) return (void*)argument;
  char* data = (char*)tensor->data + tensor->byte_offset;
  return (uintptr_t)data % (bits / 8) == 0 ? data : NULL;
}
