// Runs CUDA kernels on the CPU, so that tests execute the very sources that a GPU gets: a thread
// block is a set of fibers, one a thread, that switch at barriers and warp operations. Blocks run
// one after another, on the calling thread.
//
// tests/testing/simt comes before everything else in the include path of a kernel source: this
// folder's cuda_fp16.h, cuda_bf16.h and kernels/attention_cuda_warp.cuh stand in for CUDA's and for
// the PTX. cuda_to_cxx.py turns launches into calls of Launch.
//
// What it does not show: races that barriers do not order (a fiber runs until the next barrier),
// alignment of vector loads, and speed. Asynchronous copies are carried out as late as the waits
// allow, dynamic shared memory is not a number before a block.
//
// Not thread-safe: one kernel at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace turnkeep::simt {

extern dim3 thread_index, block_index, block_dim;

// Runs `kernel` for every thread of every block. More than 1024 threads, more than 227 KiB of
// shared memory, an empty grid and a barrier that not all threads reach end the program.
void Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void* DynamicShared();

void BlockBarrier();
void WarpBarrier();
// What every lane of the calling fiber's warp put in, by lane; good until the warp's next exchange
// has begun, which is why readers pass a WarpBarrier after reading.
struct WarpSlots {
  uint64_t words[32][8];
};
WarpSlots& Slots();
inline uint32_t Lane() { return thread_index.x % 32; }

// cp.async of the calling fiber.
void AsyncCopy(void* to, const void* from, size_t bytes, bool zero);
void AsyncCommit();
void AsyncWait(size_t groups_left);

template <class T>
T ShuffleXor(T value, uint32_t step) {
  WarpSlots& slots = Slots();
  std::memcpy(slots.words[Lane()], &value, sizeof(value));
  WarpBarrier();
  T out;
  std::memcpy(&out, slots.words[Lane() ^ step], sizeof(out));
  WarpBarrier();
  return out;
}

}  // namespace turnkeep::simt

#define threadIdx turnkeep::simt::thread_index
#define blockIdx turnkeep::simt::block_index
#define blockDim turnkeep::simt::block_dim

inline void __syncthreads() { turnkeep::simt::BlockBarrier(); }
template <class T>
T __shfl_xor_sync(uint32_t, T value, uint32_t step) {
  return turnkeep::simt::ShuffleXor(value, step);
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
using std::isfinite;
using std::max;
using std::min;

// As much of the runtime as launches use.
using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
inline cudaError_t SimtLastError() { return cudaSuccess; }
#define cudaGetLastError SimtLastError
template <class Function>
cudaError_t cudaFuncSetAttribute(Function, int, int) {
  return cudaSuccess;
}
