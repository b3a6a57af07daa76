#include "core/status.h"
#include "cuda_bench.h"

namespace turnkeep::bench {

absl::Status CudaIsThere() {
  return FailedPrecondition(
      "--device cuda: this program was built without CUDA (no nvcc, or TURNKEEP_CUDA=OFF)");
}

absl::StatusOr<AttentionBenchResult> MeasureAttentionOnCuda(const AttentionBenchOptions&,
                                                            const std::vector<AttentionCaseSpec>&) {
  return CudaIsThere();
}

absl::StatusOr<std::vector<GatherRow>> MeasureGatherOnCuda(const GatherBenchOptions&) {
  return CudaIsThere();
}

absl::StatusOr<OverlapDevice> CudaOverlapDevice() { return CudaIsThere(); }

}  // namespace turnkeep::bench
