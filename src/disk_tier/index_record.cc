#include "disk_tier/index_record.h"

#include <xxhash.h>

#include <type_traits>

#include "core/byte_codec.h"
#include "core/check.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

constexpr uint8_t kRecordVersion = 1;
constexpr uint8_t kPinnedFlag = 1;

// The fixed part of each value, as it lies on disk: little-endian, no padding. Variable
// parts and the checksum follow.
struct ChunkBody {
  uint8_t version;
  uint8_t flags;
  uint16_t layout;
  uint16_t tenant;
  uint16_t reserved;
  uint32_t token_count;
  uint32_t slot_blocks;
  uint64_t position_base;
  uint64_t epoch;
  ExtentRef extent;
  int64_t created_unix_s;
  int64_t last_used_unix_s;
  ChunkId parent;
  Digest root;
};
struct SessionBody {
  uint8_t version;
  uint8_t flags;
  uint16_t tenant;
  uint16_t layout;
  uint16_t name_bytes;
  uint64_t generation;
  uint64_t token_count;
  int64_t created_unix_s;
  int64_t last_used_unix_s;
  int64_t expires_unix_s;
  uint32_t span_blocks;
  uint32_t reserved;
};
struct SpanBody {
  uint8_t version;
  uint8_t flags;
  uint16_t slice_count;
  uint32_t reserved;
};
struct TenantBody {
  uint8_t version;
  uint8_t flags;
  uint16_t name_bytes;
  uint32_t reserved;
  TenantKey key;
};
struct LayoutBody {
  uint8_t version;
  uint8_t flags;
  uint16_t reserved;
  uint32_t encoding_bytes;
};
struct MetaBody {
  uint8_t version;
  uint8_t flags;
  uint16_t reserved;
  uint32_t reserved2;
  uint64_t value;
};
using Checksum = uint64_t;

template <typename T, size_t kBytes>
inline constexpr bool kIsOnDisk = sizeof(T) == kBytes&& std::has_unique_object_representations_v<T>;
static_assert(kIsOnDisk<ChunkBody, kChunkRecordBytes - sizeof(Checksum)>);
static_assert(kIsOnDisk<SessionBody, 56> && kIsOnDisk<SpanBody, 8> && kIsOnDisk<ChunkSlice, 40>);
static_assert(kIsOnDisk<TenantBody, 40> && kIsOnDisk<LayoutBody, 8> && kIsOnDisk<MetaBody, 16>);

// XXH3-64 of the body, seeded with that of the key, seeded with the family.
Checksum ChecksumOf(IndexFamily family, std::string_view key, std::string_view body) {
  uint64_t seed = XXH3_64bits_withSeed(key.data(), key.size(), static_cast<uint64_t>(family));
  return XXH3_64bits_withSeed(body.data(), body.size(), seed);
}

std::string Seal(IndexFamily family, std::string_view key, std::string body) {
  AppendBytes(ChecksumOf(family, key, body), &body);
  return body;
}

template <typename Body>
std::string BytesOf(const Body& body, size_t more) {
  std::string bytes;
  bytes.reserve(sizeof(body) + more + sizeof(Checksum));
  AppendBytes(body, &bytes);
  return bytes;
}

absl::Status Damaged(IndexFamily family, const char* what) {
  return DataLoss("{} record: {}", NameOf(family), what);
}

// Checks key length, checksum and version, and reads the fixed part; `rest` is what follows it.
template <typename Body>
absl::Status Unseal(IndexFamily family, size_t key_bytes, std::string_view key,
                    std::string_view value, Body* body, std::string_view* rest) {
  if (key.size() != key_bytes) return Damaged(family, "length of the key");
  if (value.size() < sizeof(Body) + sizeof(Checksum)) return Damaged(family, "too short");
  std::string_view sealed = value.substr(0, value.size() - sizeof(Checksum));
  Checksum stored = 0;
  std::memcpy(&stored, value.data() + sealed.size(), sizeof(stored));
  if (stored != ChecksumOf(family, key, sealed)) return Damaged(family, "checksum");
  std::memcpy(body, sealed.data(), sizeof(Body));
  if (body->version != kRecordVersion) return Damaged(family, "unknown format version");
  // One encoding a record: what a later version may put here is not for this one to ignore.
  constexpr uint8_t kKnownFlags = std::is_same_v<Body, SessionBody> ? kPinnedFlag : 0;
  if ((body->flags & ~kKnownFlags) != 0) return Damaged(family, "unknown flags");
  if constexpr (requires { body->reserved; }) {
    if (body->reserved != 0) return Damaged(family, "reserved bytes in use");
  }
  if constexpr (requires { body->reserved2; }) {
    if (body->reserved2 != 0) return Damaged(family, "reserved bytes in use");
  }
  *rest = sealed.substr(sizeof(Body));
  return absl::OkStatus();
}

template <typename T>
std::string BigEndianKey(T number) {
  std::string key(sizeof(T), '\0');
  for (size_t i = 0; i < sizeof(T); ++i) {
    key[i] = static_cast<char>(static_cast<uint64_t>(number) >> (8 * (sizeof(T) - 1 - i)));
  }
  return key;
}

uint64_t NumberOfKey(std::string_view key) {
  uint64_t number = 0;
  for (char c : key) number = number << 8 | static_cast<uint8_t>(c);
  return number;
}

}  // namespace

const char* NameOf(IndexFamily family) {
  switch (family) {
    case IndexFamily::kMeta:
      return "meta";
    case IndexFamily::kTenants:
      return "tenants";
    case IndexFamily::kLayouts:
      return "layouts";
    case IndexFamily::kChunks:
      return "chunks";
    case IndexFamily::kSessions:
      return "sessions";
    case IndexFamily::kSpans:
      return "spans";
  }
  return "unknown";
}

bool operator==(const SpanBlock& a, const SpanBlock& b) {
  if (a.session != b.session || a.block_index != b.block_index) return false;
  if (a.slices.size() != b.slices.size()) return false;
  for (size_t i = 0; i < a.slices.size(); ++i) {
    const ChunkSlice& x = a.slices[i];
    const ChunkSlice& y = b.slices[i];
    if (x.chunk != y.chunk || x.first != y.first || x.count != y.count) return false;
  }
  return true;
}

std::string ChunkKey(const ChunkId& id) {
  return std::string(reinterpret_cast<const char*>(id.bytes.data()), id.bytes.size());
}

std::string EncodeChunkRecord(const ChunkRecord& record) {
  ChunkBody body{.version = kRecordVersion,
                 .layout = record.layout,
                 .tenant = record.tenant,
                 .token_count = record.token_count,
                 .slot_blocks = record.slot_blocks,
                 .position_base = record.position_base,
                 .epoch = record.epoch,
                 .extent = record.extent,
                 .created_unix_s = record.created_unix_s,
                 .last_used_unix_s = record.last_used_unix_s,
                 .parent = record.parent,
                 .root = record.root};
  return Seal(IndexFamily::kChunks, ChunkKey(record.id), BytesOf(body, 0));
}

absl::Status DecodeChunkRecord(std::string_view key, std::string_view value, ChunkRecord* record) {
  constexpr IndexFamily kFamily = IndexFamily::kChunks;
  ChunkBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, sizeof(ChunkId), key, value, &body, &rest));
  if (!rest.empty()) return Damaged(kFamily, "too long");
  if (body.token_count == 0 || body.token_count > kMaxChunkTokens) {
    return Damaged(kFamily, "token count out of range");
  }
  if (body.extent.IsNull() || body.slot_blocks == 0) return Damaged(kFamily, "no extent");
  *record = {.parent = body.parent,
             .layout = body.layout,
             .tenant = body.tenant,
             .token_count = body.token_count,
             .position_base = body.position_base,
             .epoch = body.epoch,
             .root = body.root,
             .extent = body.extent,
             .slot_blocks = body.slot_blocks,
             .created_unix_s = body.created_unix_s,
             .last_used_unix_s = body.last_used_unix_s};
  std::memcpy(record->id.bytes.data(), key.data(), key.size());
  return absl::OkStatus();
}

std::string SessionKey(uint64_t number) { return BigEndianKey(number); }

std::string EncodeSessionRecord(const SessionRecord& record) {
  TK_CHECK(record.name.size() <= kMaxSessionNameBytes);
  SessionBody body{.version = kRecordVersion,
                   .flags = record.pinned ? kPinnedFlag : uint8_t{0},
                   .tenant = record.tenant,
                   .layout = record.layout,
                   .name_bytes = static_cast<uint16_t>(record.name.size()),
                   .generation = record.generation,
                   .token_count = record.token_count,
                   .created_unix_s = record.created_unix_s,
                   .last_used_unix_s = record.last_used_unix_s,
                   .expires_unix_s = record.expires_unix_s,
                   .span_blocks = record.span_blocks};
  std::string bytes = BytesOf(body, record.name.size()) + record.name;
  return Seal(IndexFamily::kSessions, SessionKey(record.number), std::move(bytes));
}

absl::Status DecodeSessionRecord(std::string_view key, std::string_view value,
                                 SessionRecord* record) {
  constexpr IndexFamily kFamily = IndexFamily::kSessions;
  SessionBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, sizeof(uint64_t), key, value, &body, &rest));
  if (rest.size() != body.name_bytes) return Damaged(kFamily, "length of the name");
  if (body.token_count > kMaxSessionTokens) return Damaged(kFamily, "too many tokens");
  // A slice holds a token at least, so more blocks than this cannot be.
  if (body.span_blocks > kMaxSessionTokens / kSlicesPerSpanBlock) {
    return Damaged(kFamily, "too many span blocks");
  }
  if (!ValidateName("session", rest).ok()) return Damaged(kFamily, "impossible name");
  *record = {.number = NumberOfKey(key),
             .name = std::string(rest),
             .generation = body.generation,
             .token_count = body.token_count,
             .created_unix_s = body.created_unix_s,
             .last_used_unix_s = body.last_used_unix_s,
             .expires_unix_s = body.expires_unix_s,
             .span_blocks = body.span_blocks,
             .tenant = body.tenant,
             .layout = body.layout,
             .pinned = (body.flags & kPinnedFlag) != 0};
  return absl::OkStatus();
}

std::string SpanKey(uint64_t session, uint32_t block_index) {
  return BigEndianKey(session) + BigEndianKey(block_index);
}

std::string EncodeSpanBlock(const SpanBlock& block) {
  TK_CHECK(!block.slices.empty() && block.slices.size() <= kSlicesPerSpanBlock);
  SpanBody body{.version = kRecordVersion,
                .slice_count = static_cast<uint16_t>(block.slices.size())};
  std::string bytes = BytesOf(body, block.slices.size() * sizeof(ChunkSlice));
  for (const ChunkSlice& slice : block.slices) AppendBytes(slice, &bytes);
  return Seal(IndexFamily::kSpans, SpanKey(block.session, block.block_index), std::move(bytes));
}

absl::Status DecodeSpanBlock(std::string_view key, std::string_view value, SpanBlock* block) {
  constexpr IndexFamily kFamily = IndexFamily::kSpans;
  constexpr size_t kKeyBytes = sizeof(uint64_t) + sizeof(uint32_t);
  SpanBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, kKeyBytes, key, value, &body, &rest));
  if (body.slice_count == 0 || body.slice_count > kSlicesPerSpanBlock ||
      rest.size() != body.slice_count * sizeof(ChunkSlice)) {
    return Damaged(kFamily, "slice count");
  }
  block->session = NumberOfKey(key.substr(0, sizeof(uint64_t)));
  block->block_index = static_cast<uint32_t>(NumberOfKey(key.substr(sizeof(uint64_t))));
  block->slices.resize(body.slice_count);
  std::memcpy(block->slices.data(), rest.data(), rest.size());
  for (const ChunkSlice& slice : block->slices) {
    if (slice.count == 0 || slice.count > kMaxChunkTokens ||
        slice.first > kMaxChunkTokens - slice.count) {
      return Damaged(kFamily, "slice out of its chunk");
    }
  }
  return absl::OkStatus();
}

std::string TenantKeyBytes(uint16_t number) { return BigEndianKey(number); }

std::string EncodeTenantRecord(const TenantRecord& record) {
  TK_CHECK(record.name.size() <= kMaxSessionNameBytes);
  TenantBody body{.version = kRecordVersion,
                  .name_bytes = static_cast<uint16_t>(record.name.size()),
                  .key = record.key};
  std::string bytes = BytesOf(body, record.name.size()) + record.name;
  return Seal(IndexFamily::kTenants, TenantKeyBytes(record.number), std::move(bytes));
}

absl::Status DecodeTenantRecord(std::string_view key, std::string_view value,
                                TenantRecord* record) {
  constexpr IndexFamily kFamily = IndexFamily::kTenants;
  TenantBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, sizeof(uint16_t), key, value, &body, &rest));
  if (rest.size() != body.name_bytes) return Damaged(kFamily, "length of the name");
  if (!ValidateName("tenant", rest).ok()) return Damaged(kFamily, "impossible name");
  *record = {.number = static_cast<uint16_t>(NumberOfKey(key)),
             .name = std::string(rest),
             .key = body.key};
  return absl::OkStatus();
}

std::string LayoutKey(uint16_t number) { return BigEndianKey(number); }

std::string EncodeLayoutRecord(const LayoutRecord& record) {
  TK_CHECK(record.encoding.size() <= kMaxLayoutEncodingBytes);
  LayoutBody body{.version = kRecordVersion,
                  .encoding_bytes = static_cast<uint32_t>(record.encoding.size())};
  std::string bytes = BytesOf(body, record.encoding.size()) + record.encoding;
  return Seal(IndexFamily::kLayouts, LayoutKey(record.number), std::move(bytes));
}

absl::Status DecodeLayoutRecord(std::string_view key, std::string_view value,
                                LayoutRecord* record) {
  constexpr IndexFamily kFamily = IndexFamily::kLayouts;
  LayoutBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, sizeof(uint16_t), key, value, &body, &rest));
  if (rest.size() != body.encoding_bytes) return Damaged(kFamily, "length of the encoding");
  *record = {.number = static_cast<uint16_t>(NumberOfKey(key)), .encoding = std::string(rest)};
  return absl::OkStatus();
}

std::string MetaKeyBytes(MetaKey key) { return std::string(1, static_cast<char>(key)); }

std::string EncodeMetaRecord(const MetaRecord& record) {
  MetaBody body{.version = kRecordVersion, .value = record.value};
  return Seal(IndexFamily::kMeta, MetaKeyBytes(record.key), BytesOf(body, 0));
}

absl::Status DecodeMetaRecord(std::string_view key, std::string_view value, MetaRecord* record) {
  constexpr IndexFamily kFamily = IndexFamily::kMeta;
  MetaBody body{};
  std::string_view rest;
  TK_RETURN_IF_ERROR(Unseal(kFamily, 1, key, value, &body, &rest));
  if (!rest.empty()) return Damaged(kFamily, "too long");
  auto number = static_cast<uint8_t>(key[0]);
  if (number < static_cast<uint8_t>(MetaKey::kFormatVersion) ||
      number > static_cast<uint8_t>(MetaKey::kStoreIdHigh)) {
    return Damaged(kFamily, "unknown key");
  }
  *record = {.key = static_cast<MetaKey>(number), .value = body.value};
  return absl::OkStatus();
}

}  // namespace turnkeep
