#include "core/status.h"
#include "cuda_bench.h"
#include "gpu_tier/cuda_device.h"

namespace turnkeep::bench {

absl::Status CudaIsThere() {
  if (CudaDevice::Count() > 0) return absl::OkStatus();
  return FailedPrecondition(
      "--device cuda: CUDA sees no device (no driver, or none is visible to this "
      "process)");
}

}  // namespace turnkeep::bench
