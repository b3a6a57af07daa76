#include "core/chunk_header.h"

#include <cstring>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "core/digest.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

ChunkHeader ExampleHeader(bool with_tokens) {
  ChunkHeader header;
  header.id.bytes.fill(1);
  header.parent.bytes.fill(2);
  header.fingerprint.bytes.fill(3);
  header.epoch = 0x1122334455667788;
  header.token_count = 21;
  header.position_base = 640;
  header.created_unix_s = -5;
  for (uint64_t i = 0; i < 7; ++i) header.layer_digests.push_back({i, ~i});
  if (with_tokens) {
    for (uint32_t i = 0; i < 21; ++i) header.tokens.push_back(1000 * i);
  } else {
    header.block_hash = std::string("hash\0of it", 10);
  }
  return header;
}

void ExpectEqual(const ChunkHeader& a, const ChunkHeader& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.parent, b.parent);
  EXPECT_EQ(a.fingerprint, b.fingerprint);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.token_count, b.token_count);
  EXPECT_EQ(a.position_base, b.position_base);
  EXPECT_EQ(a.created_unix_s, b.created_unix_s);
  EXPECT_EQ(a.layer_digests, b.layer_digests);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.block_hash, b.block_hash);
}

TEST(ChunkHeader, RoundTripsWithTokensAndWithABlockHash) {
  for (const bool with_tokens : {true, false}) {
    const ChunkHeader header = ExampleHeader(with_tokens);
    const uint64_t bytes = EncodedChunkHeaderBytes(7, 21, header.block_hash.size());
    std::vector<std::byte> slot(bytes + 100, std::byte{0xCC});
    const Digest root = EncodeChunkHeader(header, slot);
    EXPECT_EQ(slot[bytes], std::byte{0xCC}) << "written past its length";
    const auto decoded = DecodeChunkHeader(slot, header.id, header.epoch, root);
    ASSERT_TRUE(decoded.ok()) << MessageOf(decoded.status());
    ExpectEqual(*decoded, header);
    Digest found;
    const auto any = DecodeAnyChunkHeader(slot, &found);
    ASSERT_TRUE(any.ok());
    ExpectEqual(*any, header);
    EXPECT_EQ(found, root);
    // The digest table lies where a saver writes it.
    Digest third;
    std::memcpy(&third, slot.data() + kLayerDigestOffset + 3 * sizeof(Digest), sizeof(third));
    EXPECT_EQ(third, header.layer_digests[3]);
  }
}

TEST(ChunkHeader, EverySingleFlippedBitIsRefused) {
  for (const bool with_tokens : {true, false}) {
    const ChunkHeader header = ExampleHeader(with_tokens);
    std::vector<std::byte> slot(EncodedChunkHeaderBytes(7, 21, header.block_hash.size()));
    const Digest root = EncodeChunkHeader(header, slot);
    for (size_t bit = 0; bit < 8 * slot.size(); ++bit) {
      const auto mask = static_cast<std::byte>(1 << bit % 8);
      slot[bit / 8] ^= mask;
      EXPECT_EQ(DecodeChunkHeader(slot, header.id, header.epoch, root).status().code(),
                absl::StatusCode::kDataLoss)
          << "bit " << bit;
      Digest found;
      EXPECT_EQ(DecodeAnyChunkHeader(slot, &found).status().code(), absl::StatusCode::kDataLoss)
          << "bit " << bit;
      slot[bit / 8] ^= mask;
    }
  }
}

// A right root over reserved bytes that are not zero: a format of later days, or a forgery.
TEST(ChunkHeader, ReservedBytesMustBeZeroEvenUnderARightRoot) {
  const ChunkHeader header = ExampleHeader(true);
  std::vector<std::byte> slot(EncodedChunkHeaderBytes(7, 21, 0));
  const auto bound = std::span(slot).first(slot.size() - sizeof(Digest));
  for (const size_t offset : {28, 31, 152, 191}) {
    EncodeChunkHeader(header, slot);
    slot[offset] = std::byte{1};
    const Digest root =
        ComputeDigest({.chunk = header.id, .layer = kHeaderLayer, .epoch = header.epoch}, bound);
    std::memcpy(slot.data() + bound.size(), &root, sizeof(root));
    const auto decoded = DecodeChunkHeader(slot, header.id, header.epoch, root);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss) << offset;
  }
}

// Counts that only a right root would let through, were they not looked at first.
TEST(ChunkHeader, EveryFieldIsCheckedEvenUnderARightRoot) {
  const ChunkHeader header = ExampleHeader(true);
  const auto with = [&](size_t offset, auto value, uint64_t encoded_bytes) {
    std::vector<std::byte> slot(encoded_bytes + kLayerDigestOffset);
    EncodeChunkHeader(header, std::span(slot).first(slot.size()));
    std::memcpy(slot.data() + offset, &value, sizeof(value));
    if (offset != 12) {
      const auto size = static_cast<uint32_t>(encoded_bytes);
      std::memcpy(slot.data() + 12, &size, sizeof(size));
    }
    const Digest root =
        ComputeDigest({.chunk = header.id, .layer = kHeaderLayer, .epoch = header.epoch},
                      std::span(slot).first(encoded_bytes - sizeof(Digest)));
    std::memcpy(slot.data() + encoded_bytes - sizeof(Digest), &root, sizeof(root));
    Digest found;
    return DecodeAnyChunkHeader(slot, &found).status();
  };
  const uint64_t bytes = EncodedChunkHeaderBytes(7, 21, 0);
  ASSERT_TRUE(with(20, uint32_t{21}, bytes).ok());
  EXPECT_TRUE(absl::IsDataLoss(with(0, 'X', bytes))) << "magic";
  EXPECT_TRUE(absl::IsDataLoss(with(8, uint32_t{2}, bytes))) << "version";
  EXPECT_TRUE(absl::IsDataLoss(with(12, static_cast<uint32_t>(bytes + 8), bytes + 8)))
      << "longer than its counts say";
  EXPECT_TRUE(absl::IsDataLoss(with(16, uint32_t{0}, EncodedChunkHeaderBytes(0, 21, 0))));
  EXPECT_TRUE(
      absl::IsDataLoss(with(16, kMaxLayers + 1, EncodedChunkHeaderBytes(kMaxLayers + 1, 21, 0))));
  EXPECT_TRUE(absl::IsDataLoss(with(20, uint32_t{0}, EncodedChunkHeaderBytes(7, 0, 0))));
  EXPECT_TRUE(absl::IsDataLoss(
      with(20, kMaxChunkTokens + 1, EncodedChunkHeaderBytes(7, kMaxChunkTokens + 1, 0))));
  EXPECT_TRUE(absl::IsDataLoss(
      with(24, kMaxBlockHashBytes + 1, EncodedChunkHeaderBytes(7, 21, kMaxBlockHashBytes + 1))));
}

// What lies behind the slot belongs to another chunk, however well it would fit.
TEST(ChunkHeader, IsNotReadPastItsSlot) {
  const ChunkHeader header = ExampleHeader(true);
  std::vector<std::byte> slot(EncodedChunkHeaderBytes(7, 21, 0));
  EncodeChunkHeader(header, slot);
  Digest root;
  ASSERT_TRUE(DecodeAnyChunkHeader(slot, &root).ok());
  for (const size_t size : {slot.size() - 1, size_t{kLayerDigestOffset}, size_t{10}}) {
    EXPECT_TRUE(absl::IsDataLoss(DecodeAnyChunkHeader(std::span(slot).first(size), &root).status()))
        << size;
  }
}

TEST(ChunkHeader, AnotherChunksHeaderIsRefused) {
  const ChunkHeader header = ExampleHeader(true);
  std::vector<std::byte> slot(EncodedChunkHeaderBytes(7, 21, 0));
  const Digest root = EncodeChunkHeader(header, slot);
  ChunkId other_id = header.id;
  other_id.bytes[0] ^= 1;
  const auto refused = [](const absl::StatusOr<ChunkHeader>& result) {
    return result.status().code() == absl::StatusCode::kDataLoss;
  };
  EXPECT_TRUE(refused(DecodeChunkHeader(slot, other_id, header.epoch, root)));
  EXPECT_TRUE(refused(DecodeChunkHeader(slot, header.id, header.epoch + 1, root)));
  EXPECT_TRUE(refused(DecodeChunkHeader(slot, header.id, header.epoch, {root.low, 0})));
  EXPECT_TRUE(DecodeChunkHeader(slot, header.id, header.epoch, root).ok());
}

TEST(ChunkHeader, ShortAndArbitrarySlotsAreDataLoss) {
  const ChunkHeader header = ExampleHeader(true);
  std::vector<std::byte> slot(EncodedChunkHeaderBytes(7, 21, 0));
  EncodeChunkHeader(header, slot);
  Digest root;
  for (size_t size = 0; size < slot.size(); ++size) {
    // A copy of exactly `size` bytes, so that a sanitizer sees a read past it.
    const std::vector<std::byte> cut(slot.begin(), slot.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_EQ(DecodeAnyChunkHeader(cut, &root).status().code(), absl::StatusCode::kDataLoss);
  }
  const unsigned seed = 99;
  std::mt19937 random(seed);
  for (int round = 0; round < 20000; ++round) {
    // Only the lengths are disturbed: the rest of the checks stays reachable.
    std::vector<std::byte> bytes = slot;
    for (size_t i = 8; i < 32; ++i) {
      if (random() % 4 == 0) bytes[i] = static_cast<std::byte>(random());
    }
    if (bytes == slot) continue;
    EXPECT_FALSE(DecodeAnyChunkHeader(bytes, &root).ok()) << "seed " << seed << " round " << round;
  }
}

}  // namespace
}  // namespace turnkeep
