#include "llama/device_pages.h"

#include <cstring>
#include <utility>

#include "core/status.h"
#include "core/units.h"

namespace turnkeep::llama {

namespace {

constexpr size_t kAlignment = 256;

}  // namespace

absl::StatusOr<DeviceStream*> DevicePages::Stream() {
  if (stream_ == nullptr) {
    TK_ASSIGN_OR_RETURN(stream_, device().NewStream());
  }
  return stream_.get();
}

absl::Status DevicePages::Reserve(DeviceMemory* memory, size_t bytes, bool pinned) {
  if (memory->size() >= bytes) return absl::OkStatus();
  TK_ASSIGN_OR_RETURN(*memory, pinned ? device().AllocatePinned(bytes) : device().Allocate(bytes));
  return absl::OkStatus();
}

absl::Status DevicePages::BeginPass(PageMoverOptions mover, const AttentionShape& shape,
                                    const Sequence& sequence) {
  TK_RETURN_IF_ERROR(Stream().status());
  TK_RETURN_IF_ERROR(ValidateAttentionShape(shape));
  TK_RETURN_IF_ERROR(stream_->Synchronize());  // a pass that failed may still use the mover
  TK_ASSIGN_OR_RETURN(mover_, side_->make_mover(std::move(mover)));
  shape_ = shape;
  cache_ = sequence.cache();
  pages_ = sequence.table().pages;
  row_bytes_ = cache_->row_bytes();
  query_bytes_ = size_t{shape.query_heads} * shape.head_dim * DTypeBytes(shape.dtype);
  output_bytes_ = size_t{shape.query_heads} * shape.head_dim * sizeof(float);
  count_ = 0;
  return absl::OkStatus();
}

void DevicePages::PlanRows() {
  plan_.Clear();
  plan_.row_count = static_cast<uint32_t>(count_);
  const uint64_t last = first_ + count_;
  plan_.pages.assign(pages_.begin(), pages_.begin() + static_cast<ptrdiff_t>(DivideRoundUp(
                                                          last, uint64_t{shape_.page_tokens})));
  for (uint32_t row = 0; row < count_; ++row) {
    const auto tokens = static_cast<uint32_t>(first_ + row + 1);
    plan_.segments.push_back({.token_count = tokens});
    plan_.units.push_back({.first_segment = row,
                           .segment_count = 1,
                           .token_count = tokens,
                           .first_query = row,
                           .query_count = 1});
    plan_.queries.push_back(row);
    plan_.limits.push_back(tokens);
    plan_.partials.push_back(AttentionPlan::kDirect);
  }
  plan_.merge_begin.assign(count_ + 1, 0);
}

absl::Status DevicePages::BeginRows(uint64_t first, size_t count) {
  if (first == first_ && count == count_) return absl::OkStatus();  // the next layer
  first_ = first;
  count_ = count;
  const size_t rows = count * (2 * row_bytes_ + query_bytes_);
  TK_RETURN_IF_ERROR(Reserve(&staged_, rows, /*pinned=*/true));
  TK_RETURN_IF_ERROR(Reserve(&results_, count * output_bytes_, /*pinned=*/true));
  const size_t lse = count * shape_.query_heads * sizeof(float);
  TK_RETURN_IF_ERROR(Reserve(
      &on_device_, RoundUp(rows, kAlignment) + RoundUp(count * output_bytes_, kAlignment) + lse,
      /*pinned=*/false));
  PlanRows();
  TK_RETURN_IF_ERROR(ValidateAttentionPlan(plan_, shape_, cache_->options().page_count));
  return side_->attention->Upload(shape_, plan_, *stream_);
}

absl::Status DevicePages::StoreAndAttend(uint32_t layer, float* output) {
  const size_t rows = count_ * (2 * row_bytes_ + query_bytes_);
  std::byte* const up = on_device_.data();
  std::byte* const out = up + RoundUp(rows, kAlignment);
  std::byte* const lse = out + RoundUp(count_ * output_bytes_, kAlignment);
  TK_RETURN_IF_ERROR(stream_->Copy(CopyKind::kToDevice, up, staged_.data(), rows));
  const auto count = static_cast<uint32_t>(count_);
  const StagedPage page{.data = up,
                        .bytes = 2 * count_ * row_bytes_,
                        .token_begin = first_,
                        .token_count = count,
                        .chunk_token_count = count,
                        .stored_position = first_};
  TK_RETURN_IF_ERROR(mover_->Scatter(*stream_, layer, {&page, 1}));
  const uint64_t token = uint64_t{shape_.kv_heads} * shape_.head_dim;
  TK_RETURN_IF_ERROR(side_->attention->Run({.keys = cache_->Page(Plane::kKeys, layer, 0),
                                            .values = cache_->Page(Plane::kValues, layer, 0),
                                            .page_stride = token * shape_.page_tokens,
                                            .head_stride = shape_.head_dim,
                                            .token_stride = token},
                                           {.queries = up + 2 * count_ * row_bytes_,
                                            .output = reinterpret_cast<float*>(out),
                                            .lse = reinterpret_cast<float*>(lse)},
                                           *stream_));
  TK_RETURN_IF_ERROR(
      stream_->Copy(CopyKind::kToHost, results_.data(), out, count_ * output_bytes_));
  TK_RETURN_IF_ERROR(stream_->Synchronize());
  std::memcpy(output, results_.data(), count_ * output_bytes_);
  return absl::OkStatus();
}

absl::Status DevicePages::Truncate(PageMoverOptions options, const Sequence& sequence,
                                   uint64_t token_count, uint64_t drop_begin, uint64_t drop_end) {
  if (drop_end == token_count) return absl::OkStatus();
  TK_RETURN_IF_ERROR(Stream().status());
  const size_t layers = options.layers.size();
  const auto count = static_cast<uint32_t>(token_count - drop_end);
  const size_t bytes = 2 * count * sequence.cache()->row_bytes();
  TK_ASSIGN_OR_RETURN(const std::unique_ptr<LayerMover> mover,
                      side_->make_mover(std::move(options)));
  TK_RETURN_IF_ERROR(Reserve(&on_device_, bytes, /*pinned=*/false));
  StagedPage page{.data = on_device_.data(),
                  .bytes = bytes,
                  .token_begin = drop_end,
                  .token_count = count,
                  .chunk_token_count = count};
  absl::Status status;
  for (uint32_t layer = 0; layer < layers && status.ok(); ++layer) {
    page.token_begin = drop_end;
    status = mover->Gather(*stream_, layer, {&page, 1});
    page.token_begin = drop_begin;
    page.stored_position = drop_end;  // what their keys are rotated for until now
    if (status.ok()) status = mover->Scatter(*stream_, layer, {&page, 1});
  }
  status.Update(stream_->Synchronize());  // the mover goes
  return status;
}

}  // namespace turnkeep::llama
