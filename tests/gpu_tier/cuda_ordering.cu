#include "gpu_tier/cuda_ordering.h"

namespace turnkeep::testing {
namespace {

// One block, one thread a word at a time.
__global__ void Fill(uint64_t* words, size_t count, uint64_t value, uint32_t spin_cycles) {
  const long long begin = clock64();
  while (clock64() - begin < spin_cycles) {
  }
  for (size_t i = threadIdx.x; i < count; i += blockDim.x) words[i] = value;
}

__global__ void Compare(const uint64_t* words, size_t count, uint64_t value, unsigned int* wrong) {
  for (size_t i = threadIdx.x; i < count; i += blockDim.x)
    if (words[i] != value) atomicAdd(wrong, 1u);
}

}  // namespace

void FillAfter(void* stream, uint64_t* words, size_t count, uint64_t value, uint32_t spin_cycles) {
  Fill<<<1, 128, 0, static_cast<cudaStream_t>(stream)>>>(words, count, value, spin_cycles);
}

void CountWrong(void* stream, const uint64_t* words, size_t count, uint64_t value,
                unsigned int* wrong) {
  Compare<<<1, 128, 0, static_cast<cudaStream_t>(stream)>>>(words, count, value, wrong);
}

}  // namespace turnkeep::testing
