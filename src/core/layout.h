// KvLayout: everything that fixes the meaning of KV bytes.
//
// Two KV caches may be exchanged if and only if their layouts are equal field by
// field; the SHA-256 of the canonical encoding is the layout's fingerprint. All size
// arithmetic of the system lives here.
//
// A layer page holds one layer of one chunk of n tokens, dense, in this order:
//   full, window   K [n, kv_heads, key_dim], V [n, kv_heads, value_dim]
//   value_only     V [n, kv_heads, value_dim]       (softmax weights come from key_source_layer)
//   latent         C [n, latent_dim], R [n, latent_rope_dim]
//   low_rank       K [n, kv_heads, key_rank], V [n, kv_heads, value_rank]
//   state          state_bytes, the recurrent state after the chunk's last token
// With scales `per_token_head` each plane is followed by float32 [n, kv_heads] of scales
// (latent: [n]). With `per_tensor`, key_scale is that of K (latent: R) and value_scale that
// of V (latent: C).
//
// Thread-safe: plain values.
//
//   KvLayout layout{.model = "llama-3-8b", .weights_revision = "…"};
//   layout.layers.assign(32, LayerSpec::Full(8, 128, DType::kBFloat16));
//   TK_RETURN_IF_ERROR(ValidateLayout(layout));
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/ids.h"
#include "core/limits.h"

namespace turnkeep {

enum class DType : uint8_t { kFloat32 = 1, kFloat16, kBFloat16, kFp8E4M3, kFp8E5M2, kInt8 };
uint32_t DTypeBytes(DType dtype);

enum class LayerKind : uint8_t { kFull = 1, kValueOnly, kLatent, kLowRank, kWindow, kState };

enum class ScaleKind : uint8_t {
  kNone = 1,
  kPerTensor,     // constants, part of the layout
  kPerTokenHead,  // float32 beside the values, part of the page
};

enum class RopePairing : uint8_t { kNone = 1, kAdjacent, kHalves };
enum class KeyState : uint8_t {
  kRaw = 1,  // keys arrive before RoPE and are rotated at load
  kRotated,  // keys arrive rotated for their position and are stored exactly so
};

struct LayerSpec {
  LayerKind kind = LayerKind::kFull;
  DType dtype = DType::kFloat16;
  uint32_t kv_heads = 0;   // on this rank; 0 for latent and state
  uint32_t key_dim = 0;    // full, window, low_rank (before projection)
  uint32_t value_dim = 0;  // full, window, value_only, low_rank (before projection)

  uint32_t key_source_layer = 0;  // value_only: the earlier layer whose weights it applies
  uint32_t latent_dim = 0;        // latent: compressed KV
  uint32_t latent_rope_dim = 0;   // latent: the decoupled rotary key
  uint32_t key_rank = 0;          // low_rank
  uint32_t value_rank = 0;        // low_rank
  Fingerprint basis_hash;         // low_rank: SHA-256 of the bases
  uint32_t window_tokens = 0;     // window
  uint64_t state_bytes = 0;       // state

  ScaleKind scale_kind = ScaleKind::kNone;
  float key_scale = 0;    // per_tensor
  float value_scale = 0;  // per_tensor

  bool operator==(const LayerSpec&) const = default;

  static LayerSpec Full(uint32_t kv_heads, uint32_t head_dim, DType dtype);
};

struct RopeSpec {
  RopePairing pairing = RopePairing::kNone;
  uint32_t rotary_dim = 0;       // leading dims of each key that are rotated; even
  std::vector<float> inv_freq;   // rotary_dim / 2 entries
  float attention_scale = 1.0f;  // multiplies rotated q and k (YaRN)
  KeyState key_state = KeyState::kRotated;

  bool operator==(const RopeSpec&) const = default;
};

struct KvLayout {
  uint32_t layout_version = 1;
  std::string model;
  std::string weights_revision;
  std::string adapter;  // name and version of a LoRA or the like; empty for none
  uint32_t chunk_tokens = kDefaultChunkTokens;
  uint32_t parallel_rank = 0;
  uint32_t parallel_width = 1;
  RopeSpec rope;
  std::vector<LayerSpec> layers;

  bool operator==(const KvLayout&) const = default;
};

// InvalidArgument naming the field, the layer and the value that is missing,
// contradictory or past a limit (core/limits.h).
absl::Status ValidateLayout(const KvLayout& layout);

// Canonical bytes: one encoding per layout, the same on every machine. The layout
// must be valid.
std::string EncodeLayout(const KvLayout& layout);
// InvalidArgument on any byte sequence that EncodeLayout does not give.
absl::StatusOr<KvLayout> DecodeLayout(std::string_view bytes);

Fingerprint FingerprintOf(const KvLayout& layout);

// JSON for people and files; LayoutFromJson reads what LayoutToJson writes. Unknown
// keys are refused by name. Layers that are equal in a row are written once with
// "repeat".
std::string LayoutToJson(const KvLayout& layout);
absl::StatusOr<KvLayout> LayoutFromJson(std::string_view json);

// One field on which two layouts differ, values as JSON text.
struct LayoutDifference {
  std::string field;  // "chunk_tokens", "layers[3].dtype", "rope.inv_freq[0]"
  std::string left;
  std::string right;
};
// Empty if and only if the fingerprints are equal. At most `max_count` entries.
std::vector<LayoutDifference> DiffLayouts(const KvLayout& left, const KvLayout& right,
                                          size_t max_count = 16);

// Where the parts of one chunk's slot lie. The same image is used in the host arena
// and on disk: header, then layer pages in layer order.
//
// Layer pages of kBlockBytes or more start on block boundaries, so that a layer can be
// read alone by direct I/O (`pages_readable_alone`); smaller ones are packed at cache-line
// distance behind the header and the chunk is read whole.
struct ChunkGeometry {
  uint32_t token_count = 0;
  bool pages_readable_alone = false;
  uint64_t header_bytes = 0;          // reserved for the header
  std::vector<uint64_t> page_offset;  // from the start of the slot
  std::vector<uint64_t> page_bytes;
  uint64_t payload_bytes = 0;  // sum of page_bytes
  uint64_t image_bytes = 0;    // header to the end of the last page, rounded to kBlockBytes
  // Size class of the slot: image_bytes of the token count rounded up to a quarter of
  // a chunk, so that a layout needs four classes.
  uint64_t slot_bytes = 0;
};

// `token_count` in 1..chunk_tokens. The layout must be valid.
ChunkGeometry GeometryOf(const KvLayout& layout, uint32_t token_count);

// KV bytes of `token_count` tokens in one layer, scales included. The layout must be valid.
uint64_t LayerPageBytes(const LayerSpec& layer, uint32_t token_count);
// KV bytes a token over all layers (state layers excluded), for planning and display.
uint64_t BytesPerToken(const KvLayout& layout);

std::string_view NameOf(DType dtype);
std::string_view NameOf(LayerKind kind);
std::string_view NameOf(ScaleKind kind);
std::string_view NameOf(RopePairing pairing);
std::string_view NameOf(KeyState state);

}  // namespace turnkeep
