// Identities: 32-byte values compared whole, printed as hex.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>

namespace turnkeep {

// A 32-byte identity. `Tag` keeps chunk ids and fingerprints apart at compile time.
template <typename Tag>
struct Id32 {
  std::array<uint8_t, 32> bytes{};

  auto operator<=>(const Id32&) const = default;
  bool IsZero() const { return *this == Id32{}; }
  std::string Hex() const;       // 64 lower-case digits
  std::string ShortHex() const;  // the first 12 digits, for people

  // InvalidArgument unless `hex` is 64 hexadecimal digits.
  static absl::StatusOr<Id32> FromHex(std::string_view hex);

  // The bytes are already uniformly distributed, so the first eight are the hash.
  template <typename H>
  friend H AbslHashValue(H h, const Id32& id) {
    return H::combine(std::move(h), id.Prefix64());
  }
  uint64_t Prefix64() const {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
};

struct ChunkIdTag;
struct FingerprintTag;
using ChunkId = Id32<ChunkIdTag>;          // HMAC chain, see chunk_identity.h
using Fingerprint = Id32<FingerprintTag>;  // SHA-256 of a layout, see layout.h

extern template struct Id32<ChunkIdTag>;
extern template struct Id32<FingerprintTag>;

// A session or tenant name: 1..kMaxSessionNameBytes bytes of printable UTF-8 with
// no control characters. InvalidArgument names `field` and the offending value.
absl::Status ValidateName(std::string_view field, std::string_view name);

// The same for any text of at most `max_bytes`; empty text passes.
absl::Status ValidateText(std::string_view field, std::string_view text, uint32_t max_bytes);

// `text` in double quotes for a message: control and non-ASCII bytes as \xNN, cut after
// 64 bytes.
std::string Quoted(std::string_view text);

}  // namespace turnkeep
