"""Code for GPUs: CUDA C++, compiled by nvcc."""
