// The head and the manifest of a session file: everything of it but the layer pages.
// docs/session_file.md describes the format with a worked example.
//
//   file     = head manifest pages trailer        integers little-endian
//   head     = magic "TKSESS\r\n", u32 version, u32 zero, u64 manifest bytes,
//              u64 pages bytes, u64 file bytes, u64 zero, digest of the 48 bytes before
//   manifest = layout, session, chunks and slices (session_file_manifest.cc), then its digest
//   pages    = for each layer, for each chunk of the manifest: layer page, digest
//   trailer  = "TKSESEND", SHA-256 of every byte before the trailer
//
// Digests are those of core/digest.h: of a page bound to (chunk id, layer, epoch 0), so
// that a page in the wrong place does not verify; of head and manifest bound to (zero,
// kHeaderLayer, 0 and 1).
//
// Decoders are total: any byte sequence gives a value or DataLoss with the byte offset in
// the file and what is wrong there. Thread-safe: plain values and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "core/kv_types.h"
#include "core/layout.h"
#include "core/units.h"

namespace turnkeep {

inline constexpr uint32_t kSessionFileVersion = 1;
inline constexpr uint64_t kSessionFileHeadBytes = 64;
inline constexpr uint64_t kSessionFileDigestBytes = 16;
inline constexpr uint64_t kSessionFileTrailerBytes = 8 + 32;
// A session of kMaxSessionTokens tokens in chunks of kMinChunkTokens needs 152 MiB.
inline constexpr uint64_t kMaxSessionFileManifestBytes = 512 * kMiB;

struct SessionFileHead {
  uint64_t manifest_bytes = 0;  // digest included
  uint64_t pages_bytes = 0;     // digests included
  uint64_t file_bytes = 0;
};

// Exactly kSessionFileHeadBytes.
std::string EncodeSessionFileHead(const SessionFileHead& head);
// `bytes` is the front of the file, `file_bytes` its real size; a file that is shorter or
// longer than its head says is DataLoss. InvalidArgument: another version of the format.
absl::StatusOr<SessionFileHead> DecodeSessionFileHead(std::span<const std::byte> bytes,
                                                      uint64_t file_bytes);

struct SessionManifest {
  KvLayout layout;
  std::string session;
  uint64_t token_count = 0;  // sum of the slices
  int64_t exported_unix_s = 0;
  // Each with the identity that it had in the exporting store, in the order of the first
  // slice that shows it.
  std::vector<ImportedChunk> chunks;
  std::vector<ImportRequest::Slice> slices;
};

// InvalidArgument names what contradicts the format: a chunk longer than the layout's, a slice
// outside its chunk, a chunk that no slice shows, a parent after its child.
absl::Status ValidateSessionManifest(const SessionManifest& manifest);

// The manifest must be valid.
std::string EncodeSessionManifest(const SessionManifest& manifest);
// `bytes` is the whole manifest with its digest. Gives only valid manifests.
absl::StatusOr<SessionManifest> DecodeSessionManifest(std::span<const std::byte> bytes);

// Size of the pages section of a file with this manifest, digests included.
uint64_t SessionPagesBytes(const SessionManifest& manifest);

}  // namespace turnkeep
