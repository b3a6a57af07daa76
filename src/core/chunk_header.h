// The header in front of every chunk's layer pages, in the host arena and on disk.
// docs/disk_format.md gives the byte grammar.
//
// The header carries the digests of all layer pages and the token ids; the catalog
// and the index keep only the header's own digest (the root), which therefore binds
// all of it. A header whose root does not match is damage: DataLoss.
//
// Thread-safe: plain values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/statusor.h>

#include "core/chunk_identity.h"
#include "core/digest.h"
#include "core/ids.h"
#include "core/layout.h"

namespace turnkeep {

struct ChunkHeader {
  ChunkId id;
  ChunkId parent;
  Fingerprint fingerprint;
  uint64_t epoch = 0;  // number of the write; never given twice by one store
  uint32_t token_count = 0;
  uint64_t position_base = 0;  // position of the first token when it was saved
  int64_t created_unix_s = 0;
  std::vector<Digest> layer_digests;
  std::vector<uint32_t> tokens;  // empty when the engine gave a block hash
  BlockHash block_hash;          // empty when the engine gave tokens
};

// Bytes that EncodeChunkHeader writes, root digest included.
uint64_t EncodedChunkHeaderBytes(uint32_t layer_count, uint32_t token_count,
                                 size_t block_hash_bytes);

// Offset of the layer digest table from the start of the slot: a saver writes the
// digest of layer i at kLayerDigestOffset + 16 * i, and the store encodes the rest
// of the header around it at commit.
inline constexpr uint64_t kLayerDigestOffset = 192;

// Writes the header to the front of `slot` and returns its root digest. `slot` must
// hold EncodedChunkHeaderBytes.
Digest EncodeChunkHeader(const ChunkHeader& header, std::span<std::byte> slot);

// Reads a header that must be the one of (`id`, `epoch`) with root digest `root`; DataLoss
// if it is not, whatever the bytes are. `slot` may be longer than the header.
absl::StatusOr<ChunkHeader> DecodeChunkHeader(std::span<const std::byte> slot, const ChunkId& id,
                                              uint64_t epoch, const Digest& root);

// Reads a header without knowing what it should be (fsck): checks magic, version,
// lengths and that the root digest stored at its end is right.
absl::StatusOr<ChunkHeader> DecodeAnyChunkHeader(std::span<const std::byte> slot, Digest* root);

}  // namespace turnkeep
