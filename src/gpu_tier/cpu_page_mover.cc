#include "gpu_tier/cpu_page_mover.h"

#include <utility>

#include "core/status.h"
#include "kernels/gather.h"

namespace turnkeep {

absl::StatusOr<std::unique_ptr<CpuPageMover>> CpuPageMover::Make(CpuPageMoverOptions options) {
  TK_ASSIGN_OR_RETURN(auto planes, PlanesOfLayers(options));
  return std::unique_ptr<CpuPageMover>(new CpuPageMover(std::move(options), std::move(planes)));
}

absl::Status CpuPageMover::CheckRange(uint32_t layer, std::span<const StagedPage> pages) const {
  if (layer >= planes_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, planes_.size());
  return CheckTokens(planes_[layer], options_.pages.size(), pages);
}

std::shared_ptr<const Rotation> CpuPageMover::RotationOf(const StagedPage& page) {
  auto& [tokens, rotation] = rotations_[page.token_begin];
  if (rotation == nullptr || tokens != page.token_count) {
    tokens = page.token_count;
    rotation = std::make_shared<const Rotation>(Rotation::For(
        options_.layout.rope, static_cast<int64_t>(page.stored_position),
        options_.first_position + static_cast<int64_t>(page.token_begin), page.token_count));
  }
  return rotation;
}

absl::Status CpuPageMover::Scatter(DeviceStream& stream, uint32_t layer,
                                   std::span<const StagedPage> pages) {
  TK_RETURN_IF_ERROR(CheckRange(layer, pages));
  std::vector<Task> tasks;
  for (const StagedPage& page : pages) tasks.push_back({page, RotationOf(page)});
  return stream.Launch([this, layer, tasks = std::move(tasks)] {
    for (const Task& task : tasks) ScatterPage(layer, task);
  });
}

absl::Status CpuPageMover::Gather(DeviceStream& stream, uint32_t layer,
                                  std::span<const StagedPage> pages) {
  TK_RETURN_IF_ERROR(CheckRange(layer, pages));
  return stream.Launch([this, layer, all = std::vector<StagedPage>(pages.begin(), pages.end())] {
    for (const StagedPage& page : all) GatherPage(layer, page);
  });
}

void CpuPageMover::ScatterPage(uint32_t layer, const Task& task) const {
  const StagedPage& page = task.page;
  const TokenRange range{options_.pages, page.token_begin, page.token_count};
  const std::byte* at = page.data;
  for (const MoverPlane& plane : planes_[layer]) {
    const std::byte* first = at + DenseBytes(plane.engine, page.first_in_chunk);
    if (plane.raw.base != nullptr) ScatterPlane(plane.raw, range, first);
    if (plane.rotated && !task.rotation->IsIdentity()) {
      ScatterRotated(plane.engine, range, first, options_.layout.layers[layer].dtype,
                     *task.rotation);
    } else {
      ScatterPlane(plane.engine, range, first);
    }
    at += DenseBytes(plane.engine, page.chunk_token_count);
  }
}

void CpuPageMover::GatherPage(uint32_t layer, const StagedPage& page) const {
  std::byte* at = page.data;
  for (const MoverPlane& plane : planes_[layer]) {
    const PagedPlane& from = plane.raw.base != nullptr ? plane.raw : plane.engine;
    GatherPlane(from, {options_.pages, page.token_begin, page.token_count}, at);
    at += DenseBytes(plane.engine, page.chunk_token_count);
  }
}

}  // namespace turnkeep
