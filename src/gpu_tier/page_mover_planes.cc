#include "gpu_tier/page_mover_planes.h"

#include <utility>

#include "core/status.h"

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

absl::StatusOr<std::vector<MoverPlane>> PlanesOfLayer(const PageMoverOptions& options,
                                                      uint32_t layer) {
  const LayerSpec& spec = options.layout.layers[layer];
  const EngineLayer& engine = options.layers[layer];
  const uint32_t bytes = DTypeBytes(spec.dtype);
  Wanted keys{"keys", &engine.planes.keys, bytes, spec.kv_heads, spec.key_dim};
  Wanted values{"values", &engine.planes.values, bytes, spec.kv_heads, spec.value_dim};
  bool has_keys = true;
  bool keys_rotated = options.layout.rope.pairing != RopePairing::kNone;
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
  std::vector<MoverPlane> planes;
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
    if (!plain || options.layout.rope.key_state != KeyState::kRaw)
      return InvalidArgument("layer {}: raw keys of a layout that does not store them", layer);
    TK_RETURN_IF_ERROR(
        CheckPlane(layer, {"raw keys", &engine.raw_keys, bytes, spec.kv_heads, spec.key_dim}));
    if (engine.raw_keys.page_tokens != engine.planes.keys.page_tokens)
      return InvalidArgument("layer {}: pages of {} tokens, of raw keys {}", layer,
                             engine.planes.keys.page_tokens, engine.raw_keys.page_tokens);
    planes.front().raw = engine.raw_keys;
  }
  TK_RETURN_IF_ERROR(add(values, values_rotated, "value scales", engine.value_scales));
  return planes;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<MoverPlane>>> PlanesOfLayers(
    const PageMoverOptions& options) {
  if (options.layers.size() != options.layout.layers.size())
    return InvalidArgument("{} layers given for a layout of {}", options.layers.size(),
                           options.layout.layers.size());
  std::vector<std::vector<MoverPlane>> planes;
  for (uint32_t layer = 0; layer < options.layers.size(); ++layer) {
    TK_ASSIGN_OR_RETURN(planes.emplace_back(), PlanesOfLayer(options, layer));
  }
  return planes;
}

absl::Status CheckTokens(std::span<const MoverPlane> planes, size_t page_count,
                         std::span<const StagedPage> pages) {
  for (const MoverPlane& plane : planes) {
    const uint64_t room = uint64_t{plane.engine.page_tokens} * page_count;
    for (const StagedPage& page : pages) {
      if (page.token_begin + page.token_count > room)
        return InvalidArgument("tokens {}..{} of a context whose {} pages hold {}",
                               page.token_begin, page.token_begin + page.token_count, page_count,
                               room);
    }
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
