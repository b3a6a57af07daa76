#include "core/status.h"
#include "llama/kv_side.h"

namespace turnkeep::llama {

absl::StatusOr<KvSide> CudaSide() {
  return FailedPrecondition(
      "--device cuda: this program was built without CUDA (no nvcc, or TURNKEEP_CUDA=OFF)");
}

}  // namespace turnkeep::llama
