#include "disk_tier/index_record.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/limits.h"

namespace turnkeep {
namespace {

ChunkId IdOf(uint8_t seed) {
  ChunkId id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(seed * 37 + i);
  return id;
}

ChunkRecord SomeChunk() {
  return {.id = IdOf(1),
          .parent = IdOf(2),
          .layout = 3,
          .tenant = 4,
          .token_count = 64,
          .position_base = 6'000'000'000,
          .epoch = uint64_t{7} << 40,
          .root = {8, 9},
          .extent = {10, 11},
          .slot_blocks = 12,
          .created_unix_s = 1'700'000'000,
          .last_used_unix_s = 1'700'000'001};
}
SessionRecord SomeSession() {
  return {.number = 0x0102030405060708,
          .name = "caf\xc3\xa9 42",
          .generation = 9,
          .token_count = 99'000,
          .created_unix_s = 1,
          .last_used_unix_s = 2,
          .expires_unix_s = 3,
          .span_blocks = 25,
          .tenant = 1,
          .layout = 2,
          .pinned = true};
}
SpanBlock SomeBlock(size_t count) {
  SpanBlock block{.session = 77, .block_index = 3};
  for (size_t i = 0; i < count; ++i) {
    block.slices.push_back({IdOf(static_cast<uint8_t>(i)), static_cast<uint32_t>(i), 16});
  }
  return block;
}

TEST(IndexRecord, EveryKindRoundTrips) {
  ChunkRecord chunk;
  ASSERT_TRUE(
      DecodeChunkRecord(ChunkKey(SomeChunk().id), EncodeChunkRecord(SomeChunk()), &chunk).ok());
  EXPECT_EQ(chunk, SomeChunk());
  SessionRecord session;
  ASSERT_TRUE(DecodeSessionRecord(SessionKey(SomeSession().number),
                                  EncodeSessionRecord(SomeSession()), &session)
                  .ok());
  EXPECT_EQ(session, SomeSession());
  for (size_t count : {size_t{1}, size_t{63}, size_t{kSlicesPerSpanBlock}}) {
    SpanBlock block;
    ASSERT_TRUE(DecodeSpanBlock(SpanKey(77, 3), EncodeSpanBlock(SomeBlock(count)), &block).ok());
    EXPECT_EQ(block, SomeBlock(count));
  }
  TenantRecord tenant{.number = 5, .name = "alice", .key = {1, 2, 3}}, tenant_read;
  ASSERT_TRUE(DecodeTenantRecord(TenantKeyBytes(5), EncodeTenantRecord(tenant), &tenant_read).ok());
  EXPECT_EQ(tenant_read, tenant);
  LayoutRecord layout{.number = 6, .encoding = std::string("a\0b", 3)}, layout_read;
  ASSERT_TRUE(DecodeLayoutRecord(LayoutKey(6), EncodeLayoutRecord(layout), &layout_read).ok());
  EXPECT_EQ(layout_read, layout);
  MetaRecord meta{MetaKey::kNextEpoch, UINT64_MAX}, meta_read;
  ASSERT_TRUE(DecodeMetaRecord(MetaKeyBytes(meta.key), EncodeMetaRecord(meta), &meta_read).ok());
  EXPECT_EQ(meta_read, meta);
}

TEST(IndexRecord, KeysSortAsTheirNumbersDo) {
  EXPECT_LT(SessionKey(255), SessionKey(256));
  EXPECT_LT(SpanKey(1, 0xFFFFFFFF), SpanKey(2, 0));
  EXPECT_LT(SpanKey(1, 255), SpanKey(1, 256));
  EXPECT_LT(LayoutKey(255), LayoutKey(256));
}

// Every decoder, by number, so that the same checks run over each.
absl::Status DecodeAs(int kind, std::string_view key, std::string_view value) {
  ChunkRecord chunk;
  SessionRecord session;
  SpanBlock block;
  TenantRecord tenant;
  LayoutRecord layout;
  MetaRecord meta;
  switch (kind) {
    case 0:
      return DecodeChunkRecord(key, value, &chunk);
    case 1:
      return DecodeSessionRecord(key, value, &session);
    case 2:
      return DecodeSpanBlock(key, value, &block);
    case 3:
      return DecodeTenantRecord(key, value, &tenant);
    case 4:
      return DecodeLayoutRecord(key, value, &layout);
    default:
      return DecodeMetaRecord(key, value, &meta);
  }
}
struct Stored {
  std::string key;
  std::string value;
};
std::vector<Stored> AllKinds() {
  return {{ChunkKey(SomeChunk().id), EncodeChunkRecord(SomeChunk())},
          {SessionKey(SomeSession().number), EncodeSessionRecord(SomeSession())},
          {SpanKey(77, 3), EncodeSpanBlock(SomeBlock(5))},
          {TenantKeyBytes(5), EncodeTenantRecord({.number = 5, .name = "alice"})},
          {LayoutKey(6), EncodeLayoutRecord({.number = 6, .encoding = "layout"})},
          {MetaKeyBytes(MetaKey::kNextFile), EncodeMetaRecord({MetaKey::kNextFile, 8})}};
}

TEST(IndexRecord, EveryFlippedBitOfKeyOrValueIsDamage) {
  std::vector<Stored> kinds = AllKinds();
  for (int kind = 0; kind < 6; ++kind) {
    Stored stored = kinds[static_cast<size_t>(kind)];
    ASSERT_TRUE(DecodeAs(kind, stored.key, stored.value).ok());
    for (std::string* bytes : {&stored.key, &stored.value}) {
      for (size_t bit = 0; bit < bytes->size() * 8; ++bit) {
        (*bytes)[bit / 8] = static_cast<char>((*bytes)[bit / 8] ^ (1 << bit % 8));
        EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, stored.key, stored.value)))
            << "kind " << kind << (bytes == &stored.key ? " key" : " value") << " bit " << bit;
        (*bytes)[bit / 8] = static_cast<char>((*bytes)[bit / 8] ^ (1 << bit % 8));
      }
    }
  }
}

TEST(IndexRecord, EveryOtherLengthIsDamage) {
  std::vector<Stored> kinds = AllKinds();
  for (int kind = 0; kind < 6; ++kind) {
    const Stored& stored = kinds[static_cast<size_t>(kind)];
    for (size_t length = 0; length < stored.value.size(); ++length) {
      EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, stored.key, stored.value.substr(0, length))));
    }
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, stored.key, stored.value + '\0')));
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, stored.key + '\0', stored.value)));
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, "", stored.value)));
  }
}

TEST(IndexRecord, ARecordOfOneKindIsNoneOfAnother) {
  std::vector<Stored> kinds = AllKinds();
  for (int kind = 0; kind < 6; ++kind) {
    for (int other = 0; other < 6; ++other) {
      const Stored& stored = kinds[static_cast<size_t>(other)];
      EXPECT_EQ(DecodeAs(kind, stored.key, stored.value).ok(), kind == other);
    }
  }
}

TEST(IndexRecord, ImpossibleFieldsAreDamageEvenWithAGoodChecksum) {
  ChunkRecord chunk = SomeChunk(), read;
  auto decode = [&] {
    return DecodeChunkRecord(ChunkKey(chunk.id), EncodeChunkRecord(chunk), &read);
  };
  chunk.token_count = 0;
  EXPECT_TRUE(absl::IsDataLoss(decode()));
  chunk.token_count = kMaxChunkTokens + 1;
  EXPECT_TRUE(absl::IsDataLoss(decode()));
  chunk = SomeChunk();
  chunk.extent = {};
  EXPECT_TRUE(absl::IsDataLoss(decode()));
  chunk = SomeChunk();
  chunk.slot_blocks = 0;
  EXPECT_TRUE(absl::IsDataLoss(decode()));
  SpanBlock block = SomeBlock(2), block_read;
  block.slices[1].first = kMaxChunkTokens;
  EXPECT_TRUE(
      absl::IsDataLoss(DecodeSpanBlock(SpanKey(77, 3), EncodeSpanBlock(block), &block_read)));
  SessionRecord session = SomeSession(), session_read;
  session.name = "bad\nname";
  EXPECT_TRUE(absl::IsDataLoss(DecodeSessionRecord(SessionKey(session.number),
                                                   EncodeSessionRecord(session), &session_read)));
}

// `body` with the checksum that a record of the family and key has.
std::string Sealed(IndexFamily family, const std::string& key, std::string body) {
  const uint64_t seed = XXH3_64bits_withSeed(key.data(), key.size(), static_cast<uint64_t>(family));
  const uint64_t checksum = XXH3_64bits_withSeed(body.data(), body.size(), seed);
  return body.append(reinterpret_cast<const char*>(&checksum), sizeof(checksum));
}
constexpr IndexFamily kFamilies[] = {IndexFamily::kChunks,  IndexFamily::kSessions,
                                     IndexFamily::kSpans,   IndexFamily::kTenants,
                                     IndexFamily::kLayouts, IndexFamily::kMeta};

template <typename T>
std::function<void(std::string&)> Put(size_t offset, T value) {
  return [=](std::string& body) { std::memcpy(&body.at(offset), &value, sizeof(value)); };
}
std::function<void(std::string&)> Append(const std::string& more) {
  return [=](std::string& body) { body += more; };
}

// What a later version writes, or a forger: whole records that must not be taken for ours.
TEST(IndexRecord, EveryFieldIsCheckedUnderAGoodChecksum) {
  const auto slices = [](uint16_t count) {
    return [count](std::string& body) {
      const std::string slice = body.substr(8, 40);
      body.resize(8);
      std::memcpy(&body[2], &count, sizeof(count));
      for (int i = 0; i < count; ++i) body += slice;
    };
  };
  struct Case {
    const char* what;
    int kind;
    std::function<void(std::string&)> change;
  };
  std::vector<Case> cases = {
      {"reserved", 0, Put<uint16_t>(6, 1)},
      {"too long", 0, Append("x")},
      {"name length", 1, Append("x")},
      {"too many tokens", 1, Put<uint64_t>(16, kMaxSessionTokens + 1)},
      {"too many span blocks", 1, Put<uint32_t>(48, kMaxSessionTokens / kSlicesPerSpanBlock + 1)},
      {"reserved", 1, Put<uint32_t>(52, 1)},
      {"no slices", 2, slices(0)},
      {"more slices than a block has", 2, slices(kSlicesPerSpanBlock + 1)},
      {"another slice count", 2, Put<uint16_t>(2, 4)},
      {"reserved", 2, Put<uint32_t>(4, 1)},
      {"a slice of nothing", 2, Put<uint32_t>(8 + 36, 0)},
      {"a slice longer than a chunk", 2, Put<uint32_t>(8 + 36, kMaxChunkTokens + 1)},
      {"a slice past the chunk's end", 2, Put<uint32_t>(8 + 32, kMaxChunkTokens - 15)},
      {"name length", 3, Append("x")},
      {"impossible name", 3, Put<char>(40, '\n')},
      {"reserved", 3, Put<uint32_t>(4, 1)},
      {"length of the encoding", 4, Append("x")},
      {"reserved", 4, Put<uint16_t>(2, 1)},
      {"too long", 5, Append("x")},
      {"reserved", 5, Put<uint16_t>(2, 1)},
      {"reserved", 5, Put<uint32_t>(4, 1)},
  };
  for (int kind = 0; kind < 6; ++kind) {
    cases.push_back({"version", kind, Put<uint8_t>(0, 2)});
    cases.push_back({"flags", kind, Put<uint8_t>(1, 2)});
    cases.push_back(
        {"a part of the fixed fields", kind, [](std::string& body) { body.resize(7); }});
  }
  const std::vector<Stored> kinds = AllKinds();
  for (const Case& one : cases) {
    SCOPED_TRACE(std::string(NameOf(kFamilies[one.kind])) + ": " + one.what);
    const Stored& stored = kinds[static_cast<size_t>(one.kind)];
    std::string body = stored.value.substr(0, stored.value.size() - sizeof(uint64_t));
    // The test's own sealing is right.
    ASSERT_EQ(Sealed(kFamilies[one.kind], stored.key, body), stored.value);
    one.change(body);
    const absl::Status status =
        DecodeAs(one.kind, stored.key, Sealed(kFamilies[one.kind], stored.key, body));
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  }
}

TEST(IndexRecord, TheChecksumIsOfTheFamilyTheKeyAndKeysOfTheRightLength) {
  const std::vector<Stored> kinds = AllKinds();
  for (int kind = 0; kind < 6; ++kind) {
    const Stored& stored = kinds[static_cast<size_t>(kind)];
    const std::string body = stored.value.substr(0, stored.value.size() - sizeof(uint64_t));
    const IndexFamily other = kFamilies[(kind + 1) % 6];
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, stored.key, Sealed(other, stored.key, body))));
    const std::string longer = stored.key + '\0';
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(kind, longer, Sealed(kFamilies[kind], longer, body))));
  }
  // Keys of the index's own entries that are none.
  for (const char number :
       {char{0}, static_cast<char>(static_cast<int>(MetaKey::kStoreIdHigh) + 1)}) {
    const Stored& meta = kinds[5];
    const std::string key(1, number);
    const std::string body = meta.value.substr(0, meta.value.size() - sizeof(uint64_t));
    EXPECT_TRUE(absl::IsDataLoss(DecodeAs(5, key, Sealed(IndexFamily::kMeta, key, body))));
  }
}

TEST(IndexRecord, RandomBytesNeverDecodeAndNeverCrash) {
  std::mt19937_64 random(20240611);
  for (int round = 0; round < 20'000; ++round) {
    std::string key(random() % 40, '\0');
    std::string value(random() % 300, '\0');
    for (char& c : key) c = static_cast<char>(random());
    for (char& c : value) c = static_cast<char>(random());
    for (int kind = 0; kind < 6; ++kind) EXPECT_FALSE(DecodeAs(kind, key, value).ok());
  }
}

}  // namespace
}  // namespace turnkeep
