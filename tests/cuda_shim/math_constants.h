/* CUDA's names of constants, see cuda_runtime.h. */
#pragma once
#include <math.h>
#define CUDART_INF_F INFINITY
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN_F NAN
