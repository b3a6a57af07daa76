// Digests of layer pages: XXH3-128 seeded with (chunk id, layer, epoch), so that a
// page that is whole but in the wrong place does not verify either.
//
// They detect damage and misdirection, not an adversary inside the tenant: identity
// is the HMAC chain's job (chunk_identity.h).
//
// Thread-safe: pure functions.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/ids.h"

namespace turnkeep {

struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;
  auto operator<=>(const Digest&) const = default;
};
static_assert(sizeof(Digest) == 16);

// What a digest is bound to besides the bytes.
struct PageBinding {
  ChunkId chunk;
  uint32_t layer = 0;
  uint64_t epoch = 0;
};

// Layer number that binds a chunk header rather than a layer page.
inline constexpr uint32_t kHeaderLayer = 0xFFFFFFFFu;

Digest ComputeDigest(const PageBinding& binding, std::span<const std::byte> bytes);

// Copies `source` to `destination` (same size, not overlapping) and returns the digest of the
// bytes that were written to `destination`, whatever somebody does to `source` meanwhile.
// One pass over memory. Pages of 64 KiB and more are written past the cache.
Digest CopyWithDigest(const PageBinding& binding, std::span<const std::byte> source,
                      std::span<std::byte> destination);

}  // namespace turnkeep
