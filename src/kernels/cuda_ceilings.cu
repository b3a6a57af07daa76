// Matrix products from registers, and waiting. Eight independent sums a warp hide the latency of an
// mma.sync; 8 warps a block.
#include "kernels/attention_cuda_warp.cuh"
#include "kernels/cuda_ceilings.h"

namespace turnkeep {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kSums = 8;

__global__ void __launch_bounds__(kThreads) MatrixProducts(uint32_t rounds, float* out) {
  float c[kSums][4] = {};
  const uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  for (uint32_t round = 0; round < rounds; ++round) {
#pragma unroll
    for (uint32_t i = 0; i < kSums; ++i) MultiplyAdd<__half>(c[i], a, threadIdx.x + i, round);
  }
  float sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kSums; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void Spin(uint64_t nanoseconds) {
  uint64_t begin = 0;
  uint64_t now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < nanoseconds);
}

}  // namespace

double CudaMatrixWork::Operations() const {
  return 2.0 * 16 * 16 * 8 * kSums * (kThreads / 32) * blocks * rounds;
}

int LaunchMatrixProducts(const CudaMatrixWork& work, float* out, void* stream) {
  MatrixProducts<<<work.blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(work.rounds, out);
  return cudaGetLastError();
}

int LaunchSpin(uint64_t nanoseconds, void* stream) {
  Spin<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(nanoseconds);
  return cudaGetLastError();
}

}  // namespace turnkeep
