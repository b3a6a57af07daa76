#include "kernels/gather_cuda_batch.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace turnkeep {
namespace {

constexpr uint32_t kMaxUnitBytes = 16;
constexpr uint32_t kMaxRowElements = 4096;
// Of a run; unit and row numbers of a batch stay below 2^31.
constexpr uint64_t kMaxRunUnits = uint64_t{1} << 30;

static_assert(static_cast<uint32_t>(DType::kFloat32) == kCudaFloat32 &&
              static_cast<uint32_t>(DType::kFloat16) == kCudaFloat16 &&
              static_cast<uint32_t>(DType::kBFloat16) == kCudaBFloat16 &&
              static_cast<uint32_t>(DType::kFp8E4M3) == kCudaFp8E4M3 &&
              static_cast<uint32_t>(DType::kFp8E5M2) == kCudaFp8E5M2 &&
              static_cast<uint32_t>(DType::kInt8) == kCudaInt8);

uint32_t DivideUp(uint64_t a, uint64_t b) { return static_cast<uint32_t>((a + b - 1) / b); }

absl::Status CheckPlane(const PagedPlane& plane) {
  if (plane.base == nullptr) return InvalidArgument("gather on CUDA: the plane has no memory");
  if (plane.element_bytes != 1 && plane.element_bytes != 2 && plane.element_bytes != 4)
    return InvalidArgument("gather on CUDA: element_bytes {} is not 1, 2 or 4",
                           plane.element_bytes);
  if (plane.page_tokens == 0 || plane.heads == 0 || plane.dim == 0)
    return InvalidArgument("gather on CUDA: a page of {} tokens, {} heads and {} elements",
                           plane.page_tokens, plane.heads, plane.dim);
  if (plane.block_dim == 0 || plane.dim % plane.block_dim != 0)
    return InvalidArgument("gather on CUDA: blocks of {} in rows of {} elements", plane.block_dim,
                           plane.dim);
  if (plane.element_stride != 1 && plane.block_dim != plane.dim && plane.block_dim != 1)
    return InvalidArgument("gather on CUDA: elements {} apart in blocks of {}",
                           plane.element_stride, plane.block_dim);
  if (uint64_t{plane.heads} * plane.dim * plane.element_bytes > kMaxRunUnits)
    return InvalidArgument("gather on CUDA: {} heads of {} elements in a token", plane.heads,
                           plane.dim);
  return absl::OkStatus();
}

absl::Status CheckRuns(const PagedPlane& plane, size_t page_count,
                       std::span<const CudaTokenRun> runs) {
  const uint64_t room = uint64_t{plane.page_tokens} * page_count;
  for (const CudaTokenRun& run : runs) {
    if (run.first_token > room || run.token_count > room - run.first_token)
      return InvalidArgument(
          "gather on CUDA: {} tokens from {} of a context whose {} pages hold {}", run.token_count,
          run.first_token, page_count, room);
    if (run.dense == nullptr && run.token_count > 0)
      return InvalidArgument("gather on CUDA: {} tokens without a dense side", run.token_count);
  }
  return absl::OkStatus();
}

// The plane with as few and as wide blocks as describe it.
PagedPlane Simplified(PagedPlane plane, bool merge_heads) {
  if (plane.element_stride != 1 && plane.block_dim == plane.dim) {
    plane.block_dim = 1;
    plane.block_stride = plane.element_stride;
  }
  plane.element_stride = 1;
  if (merge_heads && plane.RowsAreDense() && plane.head_stride == plane.dim) {
    plane.dim *= plane.heads;
    plane.block_dim = plane.dim;
    plane.heads = 1;
  }
  if (plane.heads == 1) plane.head_stride = 0;
  if (plane.block_dim == plane.dim) plane.block_stride = 0;
  return plane;
}

// The widest unit that all addresses are multiples of.
uint32_t UnitBytes(const PagedPlane& plane, std::span<const CudaTokenRun> runs) {
  uint64_t all = kMaxUnitBytes | reinterpret_cast<uintptr_t>(plane.base);
  for (const uint64_t elements : {plane.page_stride, plane.token_stride, plane.head_stride,
                                  plane.block_stride, uint64_t{plane.block_dim}})
    all |= elements * plane.element_bytes;
  for (const CudaTokenRun& run : runs) all |= reinterpret_cast<uintptr_t>(run.dense);
  return static_cast<uint32_t>(all & (~all + 1));
}

CudaMoveBatch EmptyBatch(const PagedPlane& plane, uint32_t unit_bytes, bool to_dense) {
  const uint32_t bytes = plane.element_bytes;
  CudaMoveBatch batch;
  batch.base = reinterpret_cast<uint8_t*>(plane.base);
  batch.page_stride = plane.page_stride * bytes;
  batch.token_stride = plane.token_stride * bytes;
  batch.head_stride = plane.head_stride * bytes;
  batch.block_stride = plane.block_stride * bytes;
  batch.unit_bytes = unit_bytes;
  const uint32_t block_bytes = plane.block_dim * bytes;
  if (plane.block_dim != plane.dim && batch.token_stride == block_bytes && block_bytes < 64)
    batch.inner_tokens_log2 = 2;
  batch.page_tokens = CudaDivisor::Of(plane.page_tokens);
  batch.units_per_token = CudaDivisor::Of(plane.heads * plane.dim * bytes / unit_bytes);
  batch.units_per_row = CudaDivisor::Of(plane.dim * bytes / unit_bytes);
  batch.units_per_block = CudaDivisor::Of(block_bytes / unit_bytes);
  batch.to_dense = to_dense ? 1 : 0;
  return batch;
}

uint32_t LongestRun(const CudaMoveBatch& batch) {
  uint32_t tokens = 0;
  for (uint32_t i = 0; i < batch.run_count; ++i)
    tokens = std::max(tokens, batch.runs[i].token_count);
  return tokens;
}

}  // namespace

absl::StatusOr<std::vector<CudaMoveBatch>> CutIntoBatches(const PagedPlane& plane,
                                                          std::span<const uint32_t> pages,
                                                          std::span<const CudaTokenRun> runs,
                                                          const CudaBatchOptions& options) {
  TK_RETURN_IF_ERROR(CheckPlane(plane));
  TK_RETURN_IF_ERROR(CheckRuns(plane, pages.size(), runs));
  const PagedPlane simple = Simplified(plane, options.merge_heads);
  const CudaMoveBatch empty = EmptyBatch(simple, UnitBytes(simple, runs), options.to_dense);
  const uint64_t token_bytes = uint64_t{plane.heads} * plane.dim * plane.element_bytes;
  const uint64_t most_tokens = kMaxRunUnits / empty.units_per_token.divisor;
  std::vector<CudaMoveBatch> batches;
  uint32_t page_count = kCudaPagesAtOnce;  // of the last batch; none is there yet
  for (const CudaTokenRun& run : runs) {
    for (uint32_t done = 0; done < run.token_count;) {
      if (page_count == kCudaPagesAtOnce || batches.back().run_count == kCudaRunsAtOnce) {
        batches.push_back(empty);
        page_count = 0;
      }
      CudaMoveBatch& batch = batches.back();
      const uint64_t token = run.first_token + done;
      const uint64_t first_page = token / plane.page_tokens;
      CudaMoveRun piece;
      piece.dense = reinterpret_cast<uint8_t*>(run.dense) + done * token_bytes;
      piece.position = run.position;
      piece.first_page = page_count;
      piece.first_token = static_cast<uint32_t>(token % plane.page_tokens);
      const uint64_t room =
          uint64_t{kCudaPagesAtOnce - page_count} * plane.page_tokens - piece.first_token;
      piece.token_count =
          static_cast<uint32_t>(std::min<uint64_t>({run.token_count - done, room, most_tokens}));
      const uint32_t used = DivideUp(piece.first_token + piece.token_count, plane.page_tokens);
      for (uint32_t i = 0; i < used; ++i) batch.pages[page_count++] = pages[first_page + i];
      batch.runs[batch.run_count++] = piece;
      done += piece.token_count;
    }
  }
  return batches;
}

uint32_t MoveBlocks(const CudaMoveBatch& batch) {
  const uint64_t inner = uint64_t{1} << batch.inner_tokens_log2;
  const uint64_t tokens = DivideUp(LongestRun(batch), inner) * inner;
  return DivideUp(tokens * batch.units_per_token.divisor, kCudaMoveThreads * kCudaUnitsEach);
}

bool IsTransposed(const PagedPlane& plane, const CudaMoveBatch& batch) {
  return plane.block_dim == 1 && plane.dim > 1 && plane.token_stride == 1 &&
         batch.unit_bytes == plane.element_bytes;
}

CudaTransposeBatch TransposeOf(const PagedPlane& plane, const CudaMoveBatch& batch) {
  CudaTransposeBatch out;
  out.move = batch;
  out.heads = plane.heads;
  out.dim = plane.dim;
  out.dim_tiles = CudaDivisor::Of(DivideUp(plane.dim, kCudaTileDims));
  out.heads_divisor = CudaDivisor::Of(plane.heads);
  return out;
}

uint32_t TransposeBlocks(const CudaTransposeBatch& batch) {
  return DivideUp(LongestRun(batch.move), kCudaTileTokens) * batch.heads * batch.dim_tiles.divisor;
}

absl::StatusOr<CudaRotateBatch> RotateOf(const PagedPlane& plane, const CudaMoveBatch& batch,
                                         DType dtype, const RopeSpec& rope) {
  const uint32_t pairs = rope.rotary_dim / 2;
  if (DTypeBytes(dtype) != plane.element_bytes)
    return InvalidArgument("scatter on CUDA: keys of {} bytes in a plane of {}", DTypeBytes(dtype),
                           plane.element_bytes);
  if (pairs == 0 || rope.rotary_dim > plane.dim || pairs > kCudaMaxPairs ||
      plane.dim > kMaxRowElements || rope.inv_freq.size() != pairs)
    return InvalidArgument(
        "scatter on CUDA: a rotary dim of {} with {} frequencies in rows of {} elements",
        rope.rotary_dim, rope.inv_freq.size(), plane.dim);
  const bool is_float32 = dtype == DType::kFloat32;
  const bool per_token = rope.key_state == KeyState::kRaw;
  CudaRotateBatch out;
  out.move = batch;
  out.key_type = static_cast<uint32_t>(dtype);
  out.per_token = per_token ? 1 : 0;
  out.pair_step = rope.pairing == RopePairing::kAdjacent ? 2 : 1;
  out.pair_distance = rope.pairing == RopePairing::kAdjacent ? 1 : pairs;
  out.rows_at_once = std::max(1u, kCudaRotateElements / plane.dim);
  out.row_bytes = plane.dim * plane.element_bytes;
  out.angles_offset = DivideUp(uint64_t{out.rows_at_once} * out.row_bytes, 16) * 16;
  const uint32_t tokens =
      std::min(out.rows_at_once, (out.rows_at_once + plane.heads - 2) / plane.heads + 1);
  out.shared_bytes = out.angles_offset + (per_token ? tokens : 1) * pairs * (is_float32 ? 16 : 8);
  out.pairs = CudaDivisor::Of(pairs);
  out.heads = CudaDivisor::Of(plane.heads);
  out.scale = per_token ? static_cast<double>(rope.attention_scale) : 1.0;
  std::copy(rope.inv_freq.begin(), rope.inv_freq.end(), out.inv_freq);
  return out;
}

uint32_t RotateBlocks(const CudaRotateBatch& batch) {
  return DivideUp(uint64_t{LongestRun(batch.move)} * batch.heads.divisor, batch.rows_at_once);
}

}  // namespace turnkeep
