// From planes, block tables and runs to the parameters of kernels: all that the CUDA gather and
// scatter do before a launch. No call to CUDA. Internal to src/kernels.
//
// Thread-safe: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "core/layout.h"
#include "kernels/gather_cuda.h"
#include "kernels/gather_cuda_params.h"

namespace turnkeep {

struct CudaBatchOptions {
  bool to_dense = false;
  // Units may span heads where those are contiguous. Not for rotations, which need rows.
  bool merge_heads = true;
};

// As many batches as it takes; a run that does not fit one is cut. Runs without tokens are left
// out. InvalidArgument as gather_cuda.h.
absl::StatusOr<std::vector<CudaMoveBatch>> CutIntoBatches(const PagedPlane& plane,
                                                          std::span<const uint32_t> pages,
                                                          std::span<const CudaTokenRun> runs,
                                                          const CudaBatchOptions& options);
// Thread blocks that the longest run needs.
uint32_t MoveBlocks(const CudaMoveBatch& batch);

// Whether the batch's plane is contiguous along tokens and aligned for the transposing kernel.
bool IsTransposed(const PagedPlane& plane, const CudaMoveBatch& batch);
CudaTransposeBatch TransposeOf(const PagedPlane& plane, const CudaMoveBatch& batch);
uint32_t TransposeBlocks(const CudaTransposeBatch& batch);

// `batch` was cut without merged heads. InvalidArgument as CudaScatterRotated.
absl::StatusOr<CudaRotateBatch> RotateOf(const PagedPlane& plane, const CudaMoveBatch& batch,
                                         DType dtype, const RopeSpec& rope);
uint32_t RotateBlocks(const CudaRotateBatch& batch);

}  // namespace turnkeep
