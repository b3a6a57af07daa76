// The one list of the fields of KvLayout. Encoding, decoding, JSON and diff all walk it, so
// a new field is added here and nowhere else (besides its validation).
//
// VisitFields<T>(visitor) calls visitor(name, member pointer, presence) for each field of
// T in canonical order. The order is part of the encoding: append only, with a new
// encoding version.
//
// Internal to the layout sources.
#pragma once

#include <concepts>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/layout.h"

namespace turnkeep::internal {

// In JSON, a required field is always written and must be there to be read; an optional
// one is left out while it has its default value.
enum class Presence { kRequired, kOptional };

template <std::same_as<LayerSpec> T, typename Visitor>
void VisitFields(Visitor&& visit) {
  visit("kind", &T::kind, Presence::kRequired);
  visit("dtype", &T::dtype, Presence::kRequired);
  visit("kv_heads", &T::kv_heads, Presence::kOptional);
  visit("key_dim", &T::key_dim, Presence::kOptional);
  visit("value_dim", &T::value_dim, Presence::kOptional);
  visit("key_source_layer", &T::key_source_layer, Presence::kOptional);
  visit("latent_dim", &T::latent_dim, Presence::kOptional);
  visit("latent_rope_dim", &T::latent_rope_dim, Presence::kOptional);
  visit("key_rank", &T::key_rank, Presence::kOptional);
  visit("value_rank", &T::value_rank, Presence::kOptional);
  visit("basis_hash", &T::basis_hash, Presence::kOptional);
  visit("window_tokens", &T::window_tokens, Presence::kOptional);
  visit("state_bytes", &T::state_bytes, Presence::kOptional);
  visit("scale_kind", &T::scale_kind, Presence::kOptional);
  visit("key_scale", &T::key_scale, Presence::kOptional);
  visit("value_scale", &T::value_scale, Presence::kOptional);
}

template <std::same_as<RopeSpec> T, typename Visitor>
void VisitFields(Visitor&& visit) {
  visit("pairing", &T::pairing, Presence::kRequired);
  visit("rotary_dim", &T::rotary_dim, Presence::kOptional);
  visit("inv_freq", &T::inv_freq, Presence::kOptional);
  visit("attention_scale", &T::attention_scale, Presence::kOptional);
  visit("key_state", &T::key_state, Presence::kRequired);
}

template <std::same_as<KvLayout> T, typename Visitor>
void VisitFields(Visitor&& visit) {
  visit("layout_version", &T::layout_version, Presence::kRequired);
  visit("model", &T::model, Presence::kRequired);
  visit("weights_revision", &T::weights_revision, Presence::kRequired);
  visit("adapter", &T::adapter, Presence::kOptional);
  visit("chunk_tokens", &T::chunk_tokens, Presence::kRequired);
  visit("parallel_rank", &T::parallel_rank, Presence::kRequired);
  visit("parallel_width", &T::parallel_width, Presence::kRequired);
  visit("rope", &T::rope, Presence::kRequired);
  visit("layers", &T::layers, Presence::kRequired);
}

// Does not compile once a struct has another number of fields than the lists above (and
// EveryField of layout_test.cc) know.
inline void EveryFieldIsListed(const KvLayout& layout) {
  [[maybe_unused]] const auto& [k1, k2, k3, k4, k5, k6, k7, rope, layers] = layout;
  [[maybe_unused]] const auto& [r1, r2, r3, r4, r5] = rope;
  [[maybe_unused]] const auto& [l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, l12, l13, l14, l15,
                                l16] = layers[0];
}

template <typename T>
concept FieldStruct =
    std::same_as<T, KvLayout> || std::same_as<T, RopeSpec> || std::same_as<T, LayerSpec>;
template <typename T>
concept FieldEnum = std::is_enum_v<T>;
template <typename T>
concept FieldNumber = std::is_arithmetic_v<T>;

// Enumerations count from 1 to their last value.
template <FieldEnum T>
inline constexpr uint8_t kLastOf = 0;
template <>
inline constexpr uint8_t kLastOf<DType> = static_cast<uint8_t>(DType::kInt8);
template <>
inline constexpr uint8_t kLastOf<LayerKind> = static_cast<uint8_t>(LayerKind::kState);
template <>
inline constexpr uint8_t kLastOf<ScaleKind> = static_cast<uint8_t>(ScaleKind::kPerTokenHead);
template <>
inline constexpr uint8_t kLastOf<RopePairing> = static_cast<uint8_t>(RopePairing::kHalves);
template <>
inline constexpr uint8_t kLastOf<KeyState> = static_cast<uint8_t>(KeyState::kRotated);

template <FieldEnum T>
bool IsKnown(T value) {
  const auto number = static_cast<uint8_t>(value);
  return number >= 1 && number <= kLastOf<T>;
}

// Equality as the fingerprint sees it: floats by bit pattern, so that -0.0 is not 0.0.
inline bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }
template <typename T>
requires(std::is_integral_v<T> || FieldEnum<T>) bool SameBits(T a, T b) { return a == b; }
inline bool SameBits(const std::string& a, const std::string& b) { return a == b; }
inline bool SameBits(const Fingerprint& a, const Fingerprint& b) { return a == b; }
template <FieldStruct T>
bool SameBits(const T& a, const T& b);
template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!SameBits(a[i], b[i])) return false;
  }
  return true;
}
template <FieldStruct T>
bool SameBits(const T& a, const T& b) {
  bool same = true;
  VisitFields<T>([&](std::string_view, auto member, Presence) {
    same = same && SameBits(a.*member, b.*member);
  });
  return same;
}

}  // namespace turnkeep::internal
