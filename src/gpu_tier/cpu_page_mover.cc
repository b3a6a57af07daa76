#include "gpu_tier/cpu_page_mover.h"

#include <utility>

#include "core/status.h"
#include "kernels/gather.h"

namespace turnkeep {
namespace {

struct Wanted {
  const char* field;
  const PagedPlane* plane;
  uint32_t element_bytes;
  uint32_t heads;
  uint32_t dim;
};

absl::Status CheckPlane(uint32_t layer, const Wanted& wanted) {
  const PagedPlane& plane = *wanted.plane;
  if (plane.base == nullptr)
    return InvalidArgument("layer {}: the engine has no {}", layer, wanted.field);
  if (plane.element_bytes != wanted.element_bytes || plane.heads != wanted.heads ||
      plane.dim != wanted.dim) {
    return InvalidArgument(
        "layer {}: {} has {} heads of {} elements of {} bytes, the layout {} of {} of {}", layer,
        wanted.field, plane.heads, plane.dim, plane.element_bytes, wanted.heads, wanted.dim,
        wanted.element_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuPageMover>> CpuPageMover::Make(CpuPageMoverOptions options) {
  if (options.layers.size() != options.layout.layers.size())
    return InvalidArgument("{} layers given for a layout of {}", options.layers.size(),
                           options.layout.layers.size());
  auto mover = std::unique_ptr<CpuPageMover>(new CpuPageMover(std::move(options)));
  for (uint32_t layer = 0; layer < mover->options_.layers.size(); ++layer)
    TK_RETURN_IF_ERROR(mover->AddLayer(layer));
  return mover;
}

absl::Status CpuPageMover::AddLayer(uint32_t layer) {
  const LayerSpec& spec = options_.layout.layers[layer];
  const EngineLayer& engine = options_.layers[layer];
  const uint32_t bytes = DTypeBytes(spec.dtype);
  Wanted keys{"keys", &engine.planes.keys, bytes, spec.kv_heads, spec.key_dim};
  Wanted values{"values", &engine.planes.values, bytes, spec.kv_heads, spec.value_dim};
  bool has_keys = true;
  bool keys_rotated = options_.layout.rope.pairing != RopePairing::kNone;
  bool values_rotated = false;
  switch (spec.kind) {
    case LayerKind::kFull:
    case LayerKind::kWindow:
      break;
    case LayerKind::kValueOnly:
      has_keys = false;
      break;
    case LayerKind::kLatent:
      keys = {"latent", &engine.planes.keys, bytes, 1, spec.latent_dim};
      values = {"rotary key", &engine.planes.values, bytes, 1, spec.latent_rope_dim};
      std::swap(keys_rotated, values_rotated);
      break;
    case LayerKind::kLowRank:
      keys.dim = spec.key_rank;
      values.dim = spec.value_rank;
      keys_rotated = false;
      break;
    case LayerKind::kState:
      return InvalidArgument("layer {}: a recurrent state has no pages", layer);
  }
  std::vector<Plane> planes;
  const auto add = [&](const Wanted& wanted, bool rotated, const char* scale_field,
                       const PagedPlane& scales) -> absl::Status {
    TK_RETURN_IF_ERROR(CheckPlane(layer, wanted));
    planes.push_back({*wanted.plane, rotated, {}});
    if (spec.scale_kind != ScaleKind::kPerTokenHead) return absl::OkStatus();
    TK_RETURN_IF_ERROR(CheckPlane(layer, {scale_field, &scales, 4, wanted.heads, 1}));
    planes.push_back({scales, false, {}});
    return absl::OkStatus();
  };
  if (has_keys) TK_RETURN_IF_ERROR(add(keys, keys_rotated, "key scales", engine.key_scales));
  if (engine.raw_keys.base != nullptr) {
    const bool plain = spec.kind == LayerKind::kFull || spec.kind == LayerKind::kWindow;
    if (!plain || options_.layout.rope.key_state != KeyState::kRaw)
      return InvalidArgument("layer {}: raw keys of a layout that does not store them", layer);
    TK_RETURN_IF_ERROR(
        CheckPlane(layer, {"raw keys", &engine.raw_keys, bytes, spec.kv_heads, spec.key_dim}));
    if (engine.raw_keys.page_tokens != engine.planes.keys.page_tokens)
      return InvalidArgument("layer {}: pages of {} tokens, of raw keys {}", layer,
                             engine.planes.keys.page_tokens, engine.raw_keys.page_tokens);
    planes.front().raw = engine.raw_keys;
  }
  TK_RETURN_IF_ERROR(add(values, values_rotated, "value scales", engine.value_scales));
  planes_.push_back(std::move(planes));
  return absl::OkStatus();
}

absl::Status CpuPageMover::CheckRange(uint32_t layer, std::span<const StagedPage> pages) const {
  if (layer >= planes_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, planes_.size());
  for (const Plane& plane : planes_[layer]) {
    const uint64_t room = uint64_t{plane.engine.page_tokens} * options_.pages.size();
    for (const StagedPage& page : pages) {
      if (page.token_begin + page.token_count > room)
        return InvalidArgument("tokens {}..{} of a context whose {} pages hold {}",
                               page.token_begin, page.token_begin + page.token_count,
                               options_.pages.size(), room);
    }
  }
  return absl::OkStatus();
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
  for (const Plane& plane : planes_[layer]) {
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
  for (const Plane& plane : planes_[layer]) {
    const PagedPlane& from = plane.raw.base != nullptr ? plane.raw : plane.engine;
    GatherPlane(from, {options_.pages, page.token_begin, page.token_count}, at);
    at += DenseBytes(plane.engine, page.chunk_token_count);
  }
}

}  // namespace turnkeep
