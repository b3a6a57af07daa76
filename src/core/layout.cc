// Sizes, geometry and names. Validation: layout_validate.cc; bytes: layout_codec.cc; JSON
// and differences: layout_json.cc.
#include "core/layout.h"

#include <algorithm>

#include "core/check.h"
#include "core/chunk_header.h"
#include "core/units.h"

namespace turnkeep {
namespace {

// The largest plane that the limits allow before the page limit is looked at: no product
// below can overflow.
static_assert(uint64_t{kMaxChunkTokens} * kMaxKvHeads * kMaxHeadDim <= (uint64_t{1} << 60));
static_assert(kMaxRank <= kMaxHeadDim);
static_assert(kMaxLayers * kMaxLayerPageBytes <= (uint64_t{1} << 60));

constexpr uint32_t kSlotClasses = 4;

// One plane [token_count, heads, width], its scales included.
uint64_t PlaneBytes(const LayerSpec& layer, uint64_t token_count, uint64_t heads, uint64_t width) {
  if (width == 0) return 0;
  const uint64_t scale_bytes = layer.scale_kind == ScaleKind::kPerTokenHead ? sizeof(float) : 0;
  return token_count * heads * (width * DTypeBytes(layer.dtype) + scale_bytes);
}

struct Image {
  bool pages_readable_alone = true;
  uint64_t header_bytes = 0;
  std::vector<uint64_t> page_offset;
  std::vector<uint64_t> page_bytes;
  uint64_t payload_bytes = 0;
  uint64_t image_bytes = 0;
};

// Grows with token_count (every size and every alignment does), so an image of n tokens
// fits a slot made for more.
Image ImageOf(const KvLayout& layout, uint32_t token_count) {
  const auto layer_count = static_cast<uint32_t>(layout.layers.size());
  Image image;
  image.header_bytes =
      RoundUp(std::max(EncodedChunkHeaderBytes(layer_count, token_count, 0),
                       EncodedChunkHeaderBytes(layer_count, token_count, kMaxBlockHashBytes)),
              kCacheLineBytes);
  image.page_offset.reserve(layer_count);
  image.page_bytes.reserve(layer_count);
  uint64_t end = image.header_bytes;
  for (const LayerSpec& layer : layout.layers) {
    const uint64_t bytes = LayerPageBytes(layer, token_count);
    const bool whole_blocks = bytes >= kBlockBytes;
    const uint64_t offset = RoundUp(end, whole_blocks ? kBlockBytes : kCacheLineBytes);
    image.pages_readable_alone = image.pages_readable_alone && whole_blocks;
    image.page_offset.push_back(offset);
    image.page_bytes.push_back(bytes);
    image.payload_bytes += bytes;
    // A page read alone ends on a block boundary too: nothing of the next page's
    // blocks is read or written with it.
    end = whole_blocks ? RoundUp(offset + bytes, kBlockBytes) : offset + bytes;
  }
  image.image_bytes = RoundUp(end, kBlockBytes);
  return image;
}

}  // namespace

uint32_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFp8E4M3:
    case DType::kFp8E5M2:
    case DType::kInt8:
      return 1;
  }
  TK_CHECK(!"unknown dtype in a layout that was not validated");
  return 0;
}

LayerSpec LayerSpec::Full(uint32_t kv_heads, uint32_t head_dim, DType dtype) {
  LayerSpec layer;
  layer.kind = LayerKind::kFull;
  layer.dtype = dtype;
  layer.kv_heads = kv_heads;
  layer.key_dim = head_dim;
  layer.value_dim = head_dim;
  return layer;
}

uint64_t LayerPageBytes(const LayerSpec& layer, uint32_t token_count) {
  switch (layer.kind) {
    case LayerKind::kFull:
    case LayerKind::kWindow:
      return PlaneBytes(layer, token_count, layer.kv_heads, layer.key_dim) +
             PlaneBytes(layer, token_count, layer.kv_heads, layer.value_dim);
    case LayerKind::kValueOnly:
      return PlaneBytes(layer, token_count, layer.kv_heads, layer.value_dim);
    case LayerKind::kLatent:
      return PlaneBytes(layer, token_count, 1, layer.latent_dim) +
             PlaneBytes(layer, token_count, 1, layer.latent_rope_dim);
    case LayerKind::kLowRank:
      return PlaneBytes(layer, token_count, layer.kv_heads, layer.key_rank) +
             PlaneBytes(layer, token_count, layer.kv_heads, layer.value_rank);
    case LayerKind::kState:
      return layer.state_bytes;
  }
  TK_CHECK(!"unknown layer kind in a layout that was not validated");
  return 0;
}

uint64_t BytesPerToken(const KvLayout& layout) {
  uint64_t bytes = 0;
  for (const LayerSpec& layer : layout.layers) {
    if (layer.kind != LayerKind::kState) bytes += LayerPageBytes(layer, 1);
  }
  return bytes;
}

ChunkGeometry GeometryOf(const KvLayout& layout, uint32_t token_count) {
  TK_CHECK(token_count >= 1 && token_count <= layout.chunk_tokens);
  Image image = ImageOf(layout, token_count);
  const uint64_t quarter = DivideRoundUp(layout.chunk_tokens, kSlotClasses);
  const auto class_tokens =
      static_cast<uint32_t>(std::min<uint64_t>(RoundUp(token_count, quarter), layout.chunk_tokens));
  ChunkGeometry geometry;
  geometry.token_count = token_count;
  geometry.pages_readable_alone = image.pages_readable_alone;
  geometry.header_bytes = image.header_bytes;
  geometry.page_offset = std::move(image.page_offset);
  geometry.page_bytes = std::move(image.page_bytes);
  geometry.payload_bytes = image.payload_bytes;
  geometry.image_bytes = image.image_bytes;
  geometry.slot_bytes = class_tokens == token_count ? geometry.image_bytes
                                                    : ImageOf(layout, class_tokens).image_bytes;
  TK_CHECK(geometry.slot_bytes >= geometry.image_bytes);
  return geometry;
}

std::string_view NameOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFp8E4M3:
      return "fp8_e4m3";
    case DType::kFp8E5M2:
      return "fp8_e5m2";
    case DType::kInt8:
      return "int8";
  }
  return "unknown";
}

std::string_view NameOf(LayerKind kind) {
  switch (kind) {
    case LayerKind::kFull:
      return "full";
    case LayerKind::kValueOnly:
      return "value_only";
    case LayerKind::kLatent:
      return "latent";
    case LayerKind::kLowRank:
      return "low_rank";
    case LayerKind::kWindow:
      return "window";
    case LayerKind::kState:
      return "state";
  }
  return "unknown";
}

std::string_view NameOf(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kNone:
      return "none";
    case ScaleKind::kPerTensor:
      return "per_tensor";
    case ScaleKind::kPerTokenHead:
      return "per_token_head";
  }
  return "unknown";
}

std::string_view NameOf(RopePairing pairing) {
  switch (pairing) {
    case RopePairing::kNone:
      return "none";
    case RopePairing::kAdjacent:
      return "adjacent";
    case RopePairing::kHalves:
      return "halves";
  }
  return "unknown";
}

std::string_view NameOf(KeyState state) {
  switch (state) {
    case KeyState::kRaw:
      return "raw";
    case KeyState::kRotated:
      return "rotated";
  }
  return "unknown";
}

}  // namespace turnkeep
