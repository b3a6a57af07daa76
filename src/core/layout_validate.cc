// Validation of layouts: every field is present exactly where its layer kind uses it, within
// the limits, and in agreement with the others.
#include <cmath>
#include <initializer_list>

#include "core/layout.h"
#include "core/layout_fields.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {
namespace {

using internal::IsKnown;
using internal::SameBits;

bool IsQuantised(DType dtype) {
  return dtype == DType::kFp8E4M3 || dtype == DType::kFp8E5M2 || dtype == DType::kInt8;
}

bool IsPositive(float value) { return std::isfinite(value) && value > 0; }

// Whether a value_only layer can take its softmax weights from a layer of this kind.
bool HasKeys(LayerKind kind) {
  return kind == LayerKind::kFull || kind == LayerKind::kWindow || kind == LayerKind::kLowRank ||
         kind == LayerKind::kLatent;
}

// Validates one layer. `index` only names it in messages.
class LayerValidator {
 public:
  LayerValidator(const KvLayout& layout, size_t index)
      : layout_(layout), layer_(layout.layers[index]), index_(index) {}

  absl::Status Validate() const {
    if (!IsKnown(layer_.kind)) {
      return Wrong("kind", static_cast<uint32_t>(layer_.kind), "is no known layer kind");
    }
    if (!IsKnown(layer_.dtype)) {
      return Wrong("dtype", static_cast<uint32_t>(layer_.dtype), "is no known dtype");
    }
    TK_RETURN_IF_ERROR(ValidateCounts());
    TK_RETURN_IF_ERROR(ValidateLowRank());
    TK_RETURN_IF_ERROR(ValidateKeySource());
    TK_RETURN_IF_ERROR(ValidateScales());
    TK_RETURN_IF_ERROR(ValidateRotaryDim());
    return ValidatePageBytes();
  }

 private:
  template <typename T>
  absl::Status Wrong(std::string_view field, const T& value, std::string_view why) const {
    return InvalidArgument("layers[{}].{}: {} {} (kind {})", index_, field, value, why,
                           NameOf(layer_.kind));
  }

  bool IsOneOf(std::initializer_list<LayerKind> kinds) const {
    for (const LayerKind kind : kinds) {
      if (layer_.kind == kind) return true;
    }
    return false;
  }

  // A count that the kind uses is in 1..max; one that it does not use is 0.
  absl::Status Count(std::string_view field, uint64_t value, uint64_t max, bool used) const {
    if (!used) {
      return value == 0 ? absl::OkStatus() : Wrong(field, value, "must be 0 for this kind");
    }
    if (value == 0) return Wrong(field, value, "must be given for this kind");
    if (value > max) return Wrong(field, value, fmt::format("is more than the limit {}", max));
    return absl::OkStatus();
  }

  absl::Status ValidateCounts() const {
    using enum LayerKind;
    const bool has_heads = IsOneOf({kFull, kWindow, kValueOnly, kLowRank});
    const bool has_key_dim = IsOneOf({kFull, kWindow, kLowRank});
    TK_RETURN_IF_ERROR(Count("kv_heads", layer_.kv_heads, kMaxKvHeads, has_heads));
    TK_RETURN_IF_ERROR(Count("key_dim", layer_.key_dim, kMaxHeadDim, has_key_dim));
    TK_RETURN_IF_ERROR(Count("value_dim", layer_.value_dim, kMaxHeadDim, has_heads));
    TK_RETURN_IF_ERROR(Count("latent_dim", layer_.latent_dim, kMaxHeadDim, IsOneOf({kLatent})));
    // MLA without a decoupled rotary key has no such plane.
    const bool has_rope_plane = IsOneOf({kLatent}) && layer_.latent_rope_dim != 0;
    TK_RETURN_IF_ERROR(
        Count("latent_rope_dim", layer_.latent_rope_dim, kMaxHeadDim, has_rope_plane));
    TK_RETURN_IF_ERROR(Count("key_rank", layer_.key_rank, kMaxRank, IsOneOf({kLowRank})));
    TK_RETURN_IF_ERROR(Count("value_rank", layer_.value_rank, kMaxRank, IsOneOf({kLowRank})));
    TK_RETURN_IF_ERROR(
        Count("window_tokens", layer_.window_tokens, UINT32_MAX, IsOneOf({kWindow})));
    return Count("state_bytes", layer_.state_bytes, kMaxStateBytes, IsOneOf({kState}));
  }

  absl::Status ValidateLowRank() const {
    if (layer_.kind != LayerKind::kLowRank) {
      if (layer_.basis_hash.IsZero()) return absl::OkStatus();
      return Wrong("basis_hash", layer_.basis_hash.Hex(), "must be zero for this kind");
    }
    if (layer_.basis_hash.IsZero()) {
      return Wrong("basis_hash", layer_.basis_hash.Hex(), "must be given for this kind");
    }
    if (layer_.key_rank > layer_.key_dim) {
      return Wrong("key_rank", layer_.key_rank,
                   fmt::format("is more than key_dim {}", layer_.key_dim));
    }
    if (layer_.value_rank > layer_.value_dim) {
      return Wrong("value_rank", layer_.value_rank,
                   fmt::format("is more than value_dim {}", layer_.value_dim));
    }
    return absl::OkStatus();
  }

  absl::Status ValidateKeySource() const {
    const uint32_t source = layer_.key_source_layer;
    if (layer_.kind != LayerKind::kValueOnly) {
      return source == 0 ? absl::OkStatus()
                         : Wrong("key_source_layer", source, "must be 0 for this kind");
    }
    if (source >= index_) return Wrong("key_source_layer", source, "is not an earlier layer");
    if (!HasKeys(layout_.layers[source].kind)) {
      return Wrong(
          "key_source_layer", source,
          fmt::format("is a layer without keys ({})", NameOf(layout_.layers[source].kind)));
    }
    return absl::OkStatus();
  }

  absl::Status ValidateScales() const {
    if (!IsKnown(layer_.scale_kind)) {
      return Wrong("scale_kind", static_cast<uint32_t>(layer_.scale_kind), "is no known kind");
    }
    const std::string_view scale_name = NameOf(layer_.scale_kind);
    if (layer_.scale_kind != ScaleKind::kNone) {
      if (layer_.kind == LayerKind::kState) {
        return Wrong("scale_kind", scale_name, "must be none for this kind");
      }
      if (!IsQuantised(layer_.dtype)) {
        return Wrong("scale_kind", scale_name,
                     fmt::format("contradicts dtype {}", NameOf(layer_.dtype)));
      }
    } else if (layer_.dtype == DType::kInt8 && layer_.kind != LayerKind::kState) {
      return Wrong("scale_kind", scale_name, "leaves int8 values without a scale");
    }
    // The scale of a plane is given if and only if the page has that plane. In a latent
    // page C counts as the value plane and R as the key plane.
    const bool per_tensor = layer_.scale_kind == ScaleKind::kPerTensor;
    const bool has_key_plane =
        layer_.kind == LayerKind::kLatent ? layer_.latent_rope_dim > 0 : HasKeys(layer_.kind);
    TK_RETURN_IF_ERROR(Scale("key_scale", layer_.key_scale, per_tensor && has_key_plane));
    return Scale("value_scale", layer_.value_scale, per_tensor);
  }

  absl::Status Scale(std::string_view field, float value, bool used) const {
    if (used && !IsPositive(value)) return Wrong(field, value, "is not finite and positive");
    // By bits: -0.0 would be a second encoding of "not given".
    if (!used && !SameBits(value, 0.0f)) {
      return Wrong(field, value, "must be 0 without a per_tensor scale of that plane");
    }
    return absl::OkStatus();
  }

  // The rotary table must fit the keys that it rotates.
  absl::Status ValidateRotaryDim() const {
    const uint32_t rotary_dim = layout_.rope.rotary_dim;
    const bool latent = layer_.kind == LayerKind::kLatent;
    const uint32_t dim = latent ? layer_.latent_rope_dim : layer_.key_dim;
    if (dim == 0 || rotary_dim <= dim) return absl::OkStatus();
    return InvalidArgument("rope.rotary_dim: {} is more than layers[{}].{} {}", rotary_dim, index_,
                           latent ? "latent_rope_dim" : "key_dim", dim);
  }

  absl::Status ValidatePageBytes() const {
    const uint64_t bytes = LayerPageBytes(layer_, layout_.chunk_tokens);
    if (bytes <= kMaxLayerPageBytes) return absl::OkStatus();
    return InvalidArgument("layers[{}]: a page of {} tokens has {} bytes, at most {} are allowed",
                           index_, layout_.chunk_tokens, bytes, kMaxLayerPageBytes);
  }

  const KvLayout& layout_;
  const LayerSpec& layer_;
  const size_t index_;
};

absl::Status ValidateNoRope(const RopeSpec& rope) {
  if (rope.rotary_dim != 0) {
    return InvalidArgument("rope.rotary_dim: {} must be 0 with pairing none", rope.rotary_dim);
  }
  if (!rope.inv_freq.empty()) {
    return InvalidArgument("rope.inv_freq: {} entries, must be empty with pairing none",
                           rope.inv_freq.size());
  }
  if (!SameBits(rope.attention_scale, 1.0f)) {
    return InvalidArgument("rope.attention_scale: {} must be 1 with pairing none",
                           rope.attention_scale);
  }
  if (rope.key_state == KeyState::kRaw) {
    return InvalidArgument("rope.key_state: raw contradicts pairing none");
  }
  return absl::OkStatus();
}

absl::Status ValidateRope(const RopeSpec& rope) {
  if (!IsKnown(rope.pairing)) {
    return InvalidArgument("rope.pairing: {} is no known pairing",
                           static_cast<uint32_t>(rope.pairing));
  }
  if (!IsKnown(rope.key_state)) {
    return InvalidArgument("rope.key_state: {} is no known state",
                           static_cast<uint32_t>(rope.key_state));
  }
  if (rope.pairing == RopePairing::kNone) return ValidateNoRope(rope);
  if (rope.rotary_dim == 0 || rope.rotary_dim % 2 != 0 || rope.rotary_dim > kMaxHeadDim) {
    return InvalidArgument("rope.rotary_dim: {} is not an even number in 2..{}", rope.rotary_dim,
                           kMaxHeadDim);
  }
  if (rope.inv_freq.size() != rope.rotary_dim / 2) {
    return InvalidArgument("rope.inv_freq: {} entries, rotary_dim {} needs {}",
                           rope.inv_freq.size(), rope.rotary_dim, rope.rotary_dim / 2);
  }
  for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
    if (!std::isfinite(rope.inv_freq[i])) {
      return InvalidArgument("rope.inv_freq[{}]: {} is not finite", i, rope.inv_freq[i]);
    }
  }
  if (!IsPositive(rope.attention_scale)) {
    return InvalidArgument("rope.attention_scale: {} is not finite and positive",
                           rope.attention_scale);
  }
  return absl::OkStatus();
}

absl::Status ValidateNumbers(const KvLayout& layout) {
  if (layout.layout_version == 0) {
    return InvalidArgument("layout_version: 0, versions start at 1");
  }
  if (layout.chunk_tokens < kMinChunkTokens || layout.chunk_tokens > kMaxChunkTokens) {
    return InvalidArgument("chunk_tokens: {} is not in {}..{}", layout.chunk_tokens,
                           kMinChunkTokens, kMaxChunkTokens);
  }
  if (layout.parallel_width == 0 || layout.parallel_width > kMaxParallelWidth) {
    return InvalidArgument("parallel_width: {} is not in 1..{}", layout.parallel_width,
                           kMaxParallelWidth);
  }
  if (layout.parallel_rank >= layout.parallel_width) {
    return InvalidArgument("parallel_rank: {} is not below parallel_width {}", layout.parallel_rank,
                           layout.parallel_width);
  }
  if (layout.layers.empty() || layout.layers.size() > kMaxLayers) {
    return InvalidArgument("layers: {} layers, must be 1..{}", layout.layers.size(), kMaxLayers);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateLayout(const KvLayout& layout) {
  if (layout.model.empty()) return InvalidArgument("model: must not be empty");
  if (layout.weights_revision.empty()) {
    return InvalidArgument("weights_revision: must not be empty");
  }
  TK_RETURN_IF_ERROR(ValidateText("model", layout.model, kMaxNameBytes));
  TK_RETURN_IF_ERROR(ValidateText("weights_revision", layout.weights_revision, kMaxNameBytes));
  TK_RETURN_IF_ERROR(ValidateText("adapter", layout.adapter, kMaxNameBytes));
  TK_RETURN_IF_ERROR(ValidateNumbers(layout));
  TK_RETURN_IF_ERROR(ValidateRope(layout.rope));
  for (size_t i = 0; i < layout.layers.size(); ++i) {
    TK_RETURN_IF_ERROR(LayerValidator(layout, i).Validate());
  }
  const uint64_t chunk_bytes = GeometryOf(layout, layout.chunk_tokens).image_bytes;
  if (chunk_bytes > kMaxChunkBytes) {
    return InvalidArgument("layers: a chunk of {} tokens has {} bytes, at most {} are allowed",
                           layout.chunk_tokens, chunk_bytes, kMaxChunkBytes);
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
