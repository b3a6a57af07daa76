// Index records: any key and value are DataLoss, or a record that encodes to the same bytes.
// Input: a byte that chooses the family, a byte with the key's length, key, value.
#include <cstring>

#include <xxhash.h>

#include "core/layout.h"
#include "disk_tier/index_record.h"
#include "fuzz/fuzz_target.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

void Check(IndexFamily family, std::string_view key, std::string_view value) {
  // `same`: the record encodes to this key and value.
  const auto judge = [](const absl::Status& status, auto same) {
    TK_CHECK(status.ok() ? same() : absl::IsDataLoss(status));
  };
  ChunkRecord chunk;
  SessionRecord session;
  SpanBlock spans;
  TenantRecord tenant;
  LayoutRecord layout;
  MetaRecord meta;
  switch (family) {
    case IndexFamily::kChunks:
      return judge(DecodeChunkRecord(key, value, &chunk),
                   [&] { return ChunkKey(chunk.id) == key && EncodeChunkRecord(chunk) == value; });
    case IndexFamily::kSessions:
      return judge(DecodeSessionRecord(key, value, &session), [&] {
        return SessionKey(session.number) == key && EncodeSessionRecord(session) == value;
      });
    case IndexFamily::kSpans:
      return judge(DecodeSpanBlock(key, value, &spans), [&] {
        return SpanKey(spans.session, spans.block_index) == key && EncodeSpanBlock(spans) == value;
      });
    case IndexFamily::kTenants:
      return judge(DecodeTenantRecord(key, value, &tenant), [&] {
        return TenantKeyBytes(tenant.number) == key && EncodeTenantRecord(tenant) == value;
      });
    case IndexFamily::kLayouts:
      return judge(DecodeLayoutRecord(key, value, &layout), [&] {
        return LayoutKey(layout.number) == key && EncodeLayoutRecord(layout) == value;
      });
    case IndexFamily::kMeta:
      return judge(DecodeMetaRecord(key, value, &meta), [&] {
        return MetaKeyBytes(meta.key) == key && EncodeMetaRecord(meta) == value;
      });
  }
}

void Run(std::span<const std::byte> input) {
  const std::string_view text = TextOf(input);
  if (text.size() < 2) return;
  const auto family = static_cast<IndexFamily>(static_cast<uint8_t>(text[0]) % kIndexFamilyCount);
  const std::string_view key = text.substr(2, static_cast<uint8_t>(text[1]));
  const std::string_view value = text.substr(2 + key.size());
  Check(family, key, value);
  // The same with the checksum made right (docs/disk_format.md).
  if (value.size() < sizeof(uint64_t)) return;
  std::string sealed(value.substr(0, value.size() - sizeof(uint64_t)));
  const uint64_t seed = XXH3_64bits_withSeed(key.data(), key.size(), static_cast<uint64_t>(family));
  const uint64_t checksum = XXH3_64bits_withSeed(sealed.data(), sealed.size(), seed);
  sealed.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
  Check(family, key, sealed);
}

std::string Seed(IndexFamily family, const std::string& key, const std::string& value) {
  std::string bytes = {static_cast<char>(family), static_cast<char>(key.size())};
  return bytes + key + value;
}

std::vector<std::string> Seeds() {
  ChunkRecord chunk{.layout = 3,
                    .tenant = 2,
                    .token_count = 64,
                    .position_base = 128,
                    .epoch = 9,
                    .root = {1, 2},
                    .extent = {.file = 4, .slot = 5},
                    .slot_blocks = 6,
                    .created_unix_s = 1'700'000'000,
                    .last_used_unix_s = 1'700'000'001};
  chunk.id.bytes[0] = 1;
  const SessionRecord session{.number = 77,
                              .name = "alice",
                              .generation = 3,
                              .token_count = 100,
                              .created_unix_s = 1,
                              .last_used_unix_s = 2,
                              .expires_unix_s = 3,
                              .span_blocks = 1,
                              .tenant = 1,
                              .layout = 1,
                              .pinned = true};
  SpanBlock spans{.session = 77, .block_index = 0};
  spans.slices.assign(kSlicesPerSpanBlock, ChunkSlice{.chunk = chunk.id, .first = 1, .count = 63});
  const TenantRecord tenant{.number = 1, .name = "default"};
  const LayoutRecord layout{.number = 1, .encoding = EncodeLayout(TinyLayout())};
  const MetaRecord meta{.key = MetaKey::kNextEpoch, .value = 1000};
  return {
      Seed(IndexFamily::kChunks, ChunkKey(chunk.id), EncodeChunkRecord(chunk)),
      Seed(IndexFamily::kSessions, SessionKey(session.number), EncodeSessionRecord(session)),
      Seed(IndexFamily::kSpans, SpanKey(spans.session, spans.block_index), EncodeSpanBlock(spans)),
      Seed(IndexFamily::kTenants, TenantKeyBytes(tenant.number), EncodeTenantRecord(tenant)),
      Seed(IndexFamily::kLayouts, LayoutKey(layout.number), EncodeLayoutRecord(layout)),
      Seed(IndexFamily::kMeta, MetaKeyBytes(meta.key), EncodeMetaRecord(meta))};
}

}  // namespace

const FuzzTarget kFuzzTarget = {"index_record", Run, Seeds, 60000};

}  // namespace turnkeep::testing
