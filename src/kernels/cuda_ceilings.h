// Kernels that measure what a CUDA device can do, for floors, and one that only takes time. Only in
// builds with CUDA; the header needs none of CUDA's. All return a cudaError_t (cuda_status.h) and
// do not wait; `stream` is a cudaStream_t.
//
// Thread-safe.
#pragma once

#include <cstdint>

namespace turnkeep {

// `blocks` thread blocks, each of which multiplies 16 × 16 by 16 × 8 matrices of float16 in
// registers, as the tile kernel of attention does. `out`, device memory of one float a block,
// keeps the work from being left out.
struct CudaMatrixWork {
  uint32_t blocks = 0;
  uint32_t rounds = 0;
  double Operations() const;  // multiplies and adds
};
int LaunchMatrixProducts(const CudaMatrixWork& work, float* out, void* stream);

// One thread that runs for `nanoseconds` by the device's global timer: a layer's compute.
int LaunchSpin(uint64_t nanoseconds, void* stream);

}  // namespace turnkeep
