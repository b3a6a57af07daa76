// TURNKEEP_HOST_DEVICE before a function: nvcc compiles it for both sides, other compilers see
// nothing. Internal to src/kernels.
#pragma once

#if defined(__CUDACC__)
#define TURNKEEP_HOST_DEVICE __host__ __device__
#else
#define TURNKEEP_HOST_DEVICE
#endif
