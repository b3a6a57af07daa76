// Chunk identity: ChunkId = HMAC-SHA256(tenant key, parent id || fingerprint || content).
//
// The chain makes the chunks of one tenant and layout a prefix tree: equal prefixes
// have equal ids, and ids of different tenants never meet, since their keys differ.
//
// Thread-safe: const after construction. A 64-token step costs well under a
// microsecond with the CPU's SHA extensions.
//
//   ChunkHasher hasher(key);
//   ChunkId id = hasher.Root(fingerprint);
//   for (auto tokens : chunks) id = hasher.Tokens(id, fingerprint, tokens);
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/ids.h"

namespace turnkeep {

using TenantKey = std::array<uint8_t, 32>;

// An engine's own hash of one block, 1..kMaxBlockHashBytes bytes.
using BlockHash = std::string;

// The part of a chunk that a session shows: tokens [first, first + count) of it.
struct ChunkSlice {
  ChunkId chunk;
  uint32_t first = 0;
  uint32_t count = 0;
};

class ChunkHasher {
 public:
  explicit ChunkHasher(const TenantKey& key);
  ~ChunkHasher();
  ChunkHasher(ChunkHasher&&) noexcept;
  ChunkHasher& operator=(ChunkHasher&&) noexcept;

  // The parent of the first chunk of an untruncated context.
  ChunkId Root(const Fingerprint& fingerprint) const;
  // The chunk that holds `tokens` after `parent`. A partly filled chunk (a tail)
  // has an id of its own: the token count is part of the content.
  ChunkId Tokens(const ChunkId& parent, const Fingerprint& fingerprint,
                 std::span<const uint32_t> tokens) const;
  // The same for an engine that names blocks by hashes of its own.
  ChunkId Block(const ChunkId& parent, const Fingerprint& fingerprint, const BlockHash& hash,
                uint32_t token_count) const;
  // The parent of what is appended to a truncated view. Different from every id that
  // Tokens() and Block() give, so a truncated context never aliases the full one.
  ChunkId View(const Fingerprint& fingerprint, std::span<const ChunkSlice> slices) const;
  // The local name of a parent that an imported chunk had in another store.
  ChunkId Foreign(const ChunkId& foreign_parent) const;

 private:
  struct State;  // HMAC states after the padded key
  std::unique_ptr<State> state_;
};

}  // namespace turnkeep
