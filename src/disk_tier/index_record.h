// The records of the index and their byte encodings (docs/disk_format.md).
//
// Decoders are total: any bytes give a record or DataLoss, never a crash. Every value
// starts with its own format version and ends with a checksum over key and value,
// so a record that is whole but under another key does not decode either.
//
// Thread-safe: plain values and pure functions. No RocksDB here.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/chunk_identity.h"
#include "core/digest.h"
#include "core/ids.h"
#include "disk_tier/extent_ref.h"

namespace turnkeep {

inline constexpr uint32_t kSlicesPerSpanBlock = 64;
inline constexpr size_t kChunkRecordBytes = 112;

struct ChunkRecord {
  ChunkId id;  // the key
  ChunkId parent;
  uint16_t layout = 0;  // number of a LayoutRecord
  uint16_t tenant = 0;  // number of a TenantRecord
  uint32_t token_count = 0;
  uint64_t position_base = 0;
  uint64_t epoch = 0;
  Digest root;  // of the chunk header
  ExtentRef extent;
  uint32_t slot_blocks = 0;  // slot bytes / kBlockBytes
  int64_t created_unix_s = 0;
  int64_t last_used_unix_s = 0;
  bool operator==(const ChunkRecord&) const = default;
};

struct SessionRecord {
  uint64_t number = 0;  // the key; never given twice
  std::string name;
  uint64_t generation = 0;
  uint64_t token_count = 0;
  int64_t created_unix_s = 0;
  int64_t last_used_unix_s = 0;
  int64_t expires_unix_s = 0;  // 0: no time to live
  uint32_t span_blocks = 0;    // span blocks 0..span_blocks-1 belong to it
  uint16_t tenant = 0;
  uint16_t layout = 0;
  bool pinned = false;
  bool operator==(const SessionRecord&) const = default;
};

// Slices [block_index * kSlicesPerSpanBlock, ...) of a session; all blocks but the last are full.
struct SpanBlock {
  uint64_t session = 0;
  uint32_t block_index = 0;
  std::vector<ChunkSlice> slices;  // 1..kSlicesPerSpanBlock
};
bool operator==(const SpanBlock& a, const SpanBlock& b);

struct TenantRecord {
  uint16_t number = 0;
  std::string name;
  TenantKey key{};
  bool operator==(const TenantRecord&) const = default;
};

struct LayoutRecord {
  uint16_t number = 0;
  std::string encoding;  // EncodeLayout
  bool operator==(const LayoutRecord&) const = default;
};

enum class IndexFamily : uint8_t { kMeta = 0, kTenants, kLayouts, kChunks, kSessions, kSpans };
inline constexpr int kIndexFamilyCount = 6;
const char* NameOf(IndexFamily family);

enum class MetaKey : uint8_t {
  kFormatVersion = 1,
  kNextEpoch,
  kNextSession,
  kNextFile,
  kCleanShutdown,
  kStoreIdLow,
  kStoreIdHigh,
};
struct MetaRecord {
  MetaKey key = MetaKey::kFormatVersion;
  uint64_t value = 0;
  bool operator==(const MetaRecord&) const = default;
};

// Encoders. Records must be within the limits of core/limits.h.
std::string ChunkKey(const ChunkId& id);
std::string EncodeChunkRecord(const ChunkRecord& record);
std::string SessionKey(uint64_t number);
std::string EncodeSessionRecord(const SessionRecord& record);
std::string SpanKey(uint64_t session, uint32_t block_index);
std::string EncodeSpanBlock(const SpanBlock& block);
std::string TenantKeyBytes(uint16_t number);
std::string EncodeTenantRecord(const TenantRecord& record);
std::string LayoutKey(uint16_t number);
std::string EncodeLayoutRecord(const LayoutRecord& record);
std::string MetaKeyBytes(MetaKey key);
std::string EncodeMetaRecord(const MetaRecord& record);

// Decoders: DataLoss naming what does not fit, for any bytes the encoder does not give.
absl::Status DecodeChunkRecord(std::string_view key, std::string_view value, ChunkRecord* record);
absl::Status DecodeSessionRecord(std::string_view key, std::string_view value,
                                 SessionRecord* record);
absl::Status DecodeSpanBlock(std::string_view key, std::string_view value, SpanBlock* block);
absl::Status DecodeTenantRecord(std::string_view key, std::string_view value, TenantRecord* record);
absl::Status DecodeLayoutRecord(std::string_view key, std::string_view value, LayoutRecord* record);
absl::Status DecodeMetaRecord(std::string_view key, std::string_view value, MetaRecord* record);

}  // namespace turnkeep
