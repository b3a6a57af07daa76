#include "gpu_tier/cuda_page_mover.h"

#include <utility>

#include "core/status.h"
#include "kernels/cuda_status.h"
#include "kernels/gather.h"
#include "kernels/gather_cuda.h"

namespace turnkeep {
namespace {

// Where each page's plane begins; moves on to the next plane.
class PlaneCursor {
 public:
  explicit PlaneCursor(std::span<const StagedPage> pages) : pages_(pages), at_(pages.size(), 0) {}

  // `position(page)`: CudaTokenRun::position.
  template <typename Position>
  std::vector<CudaTokenRun> Runs(const PagedPlane& plane, const Position& position) const {
    std::vector<CudaTokenRun> runs;
    for (size_t i = 0; i < pages_.size(); ++i) {
      const StagedPage& page = pages_[i];
      runs.push_back({.dense = page.data + at_[i] + DenseBytes(plane, page.first_in_chunk),
                      .first_token = page.token_begin,
                      .token_count = page.token_count,
                      .position = position(page)});
    }
    return runs;
  }
  void Pass(const PagedPlane& plane) {
    for (size_t i = 0; i < pages_.size(); ++i)
      at_[i] += DenseBytes(plane, pages_[i].chunk_token_count);
  }

 private:
  const std::span<const StagedPage> pages_;
  std::vector<uint64_t> at_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaPageMover>> CudaPageMover::Make(int ordinal,
                                                                   PageMoverOptions options) {
  TK_ASSIGN_OR_RETURN(auto planes, PlanesOfLayers(options));
  return std::unique_ptr<CudaPageMover>(
      new CudaPageMover(ordinal, std::move(options), std::move(planes)));
}

absl::Status CudaPageMover::Check(const DeviceStream& stream, uint32_t layer,
                                  std::span<const StagedPage> pages) const {
  if (layer >= planes_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, planes_.size());
  if (stream.native_handle() == nullptr)
    return InvalidArgument("layer {}: the stream is not one of a CUDA device", layer);
  return CheckTokens(planes_[layer], options_.pages.size(), pages);
}

absl::Status CudaPageMover::Scatter(DeviceStream& stream, uint32_t layer,
                                    std::span<const StagedPage> pages) {
  TK_RETURN_IF_ERROR(Check(stream, layer, pages));
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  void* const on = stream.native_handle();
  const RopeSpec& rope = options_.layout.rope;
  const DType dtype = options_.layout.layers[layer].dtype;
  const auto position = [&](const StagedPage& page) {
    const int64_t to = options_.first_position + static_cast<int64_t>(page.token_begin);
    return rope.key_state == KeyState::kRaw ? to : to - static_cast<int64_t>(page.stored_position);
  };
  PlaneCursor cursor(pages);
  for (const MoverPlane& plane : planes_[layer]) {
    const std::vector<CudaTokenRun> runs = cursor.Runs(plane.engine, position);
    if (plane.raw.base != nullptr)
      TK_RETURN_IF_ERROR(CudaScatter(plane.raw, options_.pages, runs, on));
    TK_RETURN_IF_ERROR(plane.rotated
                           ? CudaScatterRotated(plane.engine, options_.pages, runs, dtype, rope, on)
                           : CudaScatter(plane.engine, options_.pages, runs, on));
    cursor.Pass(plane.engine);
  }
  return absl::OkStatus();
}

absl::Status CudaPageMover::Gather(DeviceStream& stream, uint32_t layer,
                                   std::span<const StagedPage> pages) {
  TK_RETURN_IF_ERROR(Check(stream, layer, pages));
  const CudaCurrentDevice current(ordinal_);
  TK_RETURN_IF_ERROR(current.status());
  PlaneCursor cursor(pages);
  for (const MoverPlane& plane : planes_[layer]) {
    const PagedPlane& from = plane.raw.base != nullptr ? plane.raw : plane.engine;
    const std::vector<CudaTokenRun> runs =
        cursor.Runs(plane.engine, [](const StagedPage&) { return 0; });
    TK_RETURN_IF_ERROR(CudaGather(from, options_.pages, runs, stream.native_handle()));
    cursor.Pass(plane.engine);
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
