#include "kernels/gather_cuda.h"

#include <vector>

#include "core/status.h"
#include "kernels/cuda_status.h"
#include "kernels/gather_cuda_batch.h"

namespace turnkeep {
namespace {

absl::Status MoveRuns(const PagedPlane& plane, std::span<const uint32_t> pages,
                      std::span<const CudaTokenRun> runs, bool to_dense, void* stream) {
  TK_ASSIGN_OR_RETURN(const std::vector<CudaMoveBatch> batches,
                      CutIntoBatches(plane, pages, runs, {.to_dense = to_dense}));
  for (const CudaMoveBatch& batch : batches) {
    int error = 0;
    if (IsTransposed(plane, batch)) {
      const CudaTransposeBatch transposed = TransposeOf(plane, batch);
      error = LaunchTranspose(transposed, TransposeBlocks(transposed), stream);
    } else {
      error = LaunchMove(batch, MoveBlocks(batch), stream);
    }
    TK_RETURN_IF_ERROR(CudaStatus(
        error, fmt::format("{} of {} runs", to_dense ? "gather" : "scatter", batch.run_count)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CudaGather(const PagedPlane& plane, std::span<const uint32_t> pages,
                        std::span<const CudaTokenRun> runs, void* stream) {
  return MoveRuns(plane, pages, runs, /*to_dense=*/true, stream);
}

absl::Status CudaScatter(const PagedPlane& plane, std::span<const uint32_t> pages,
                         std::span<const CudaTokenRun> runs, void* stream) {
  return MoveRuns(plane, pages, runs, /*to_dense=*/false, stream);
}

absl::Status CudaScatterRotated(const PagedPlane& plane, std::span<const uint32_t> pages,
                                std::span<const CudaTokenRun> runs, DType dtype,
                                const RopeSpec& rope, void* stream) {
  // Rotated keys that stay where they are keep their bits.
  std::vector<CudaTokenRun> still, moving;
  for (const CudaTokenRun& run : runs) {
    const bool stays = rope.key_state == KeyState::kRotated && run.position == 0;
    (rope.pairing == RopePairing::kNone || stays ? still : moving).push_back(run);
  }
  TK_ASSIGN_OR_RETURN(
      const std::vector<CudaMoveBatch> batches,
      CutIntoBatches(plane, pages, moving, {.to_dense = false, .merge_heads = false}));
  std::vector<CudaRotateBatch> rotated;
  for (const CudaMoveBatch& batch : batches) {
    TK_ASSIGN_OR_RETURN(rotated.emplace_back(), RotateOf(plane, batch, dtype, rope));
  }
  if (!still.empty()) TK_RETURN_IF_ERROR(CudaScatter(plane, pages, still, stream));
  for (const CudaRotateBatch& batch : rotated) {
    TK_RETURN_IF_ERROR(CudaStatus(LaunchRotate(batch, RotateBlocks(batch), stream),
                                  fmt::format("scatter of {} rotated runs", batch.move.run_count)));
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
