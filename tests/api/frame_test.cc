#include "api/frame.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/turnkeep.pb.h"
#include "core/status.h"

namespace turnkeep::wire {
namespace {

using ::testing::HasSubstr;

std::string FrameOf(const FrameHeader& header, const std::string& payload, const std::string& raw) {
  return EncodeFrameHead(header, payload, raw.size()) + raw + std::string(RawPadding(raw.size()));
}

std::string TextOf(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// Gives `bytes` to the reader in pieces of at most `piece`.
absl::StatusOr<std::vector<Frame>> ReadAll(FrameReader& reader, std::string_view bytes,
                                           size_t piece) {
  std::vector<Frame> frames;
  for (;;) {
    TK_ASSIGN_OR_RETURN(std::optional<Frame> frame, reader.Next());
    if (frame) {
      FrameReader::Keep(*frame);
      frames.push_back(std::move(*frame));
      continue;
    }
    if (bytes.empty()) return frames;
    const auto area = reader.Writable();
    const size_t n = std::min({piece, bytes.size(), area.size()});
    std::memcpy(area.data(), bytes.data(), n);
    reader.Received(n);
    bytes.remove_prefix(n);
  }
}

TEST(Frame, ComesOutAsItWentInWhateverThePieces) {
  std::string stream;
  std::vector<std::pair<std::string, std::string>> sent;
  std::mt19937_64 random(1);
  for (const size_t size : {0, 1, 7, 8, 9, 100, 4096, 65536, 70000, 300001}) {
    std::string payload(random() % 50, static_cast<char>('a' + sent.size()));
    std::string raw(size, '\0');
    for (char& c : raw) c = static_cast<char>(random());
    const FrameHeader header{
        .type = COMMIT, .request_id = sent.size() + 1, .time_limit_us = 77, .flags = kFlagReply};
    stream += FrameOf(header, payload, raw);
    sent.emplace_back(payload, raw);
  }
  for (const size_t piece : {1, 3, 39, 40, 41, 64, 1000, 65536, 1 << 20}) {
    FrameReader reader;
    const auto frames = ReadAll(reader, stream, piece);
    ASSERT_TRUE(frames.ok()) << frames.status();
    ASSERT_EQ(frames->size(), sent.size()) << "pieces of " << piece;
    for (size_t i = 0; i < sent.size(); ++i) {
      EXPECT_EQ(TextOf((*frames)[i].payload()), sent[i].first);
      EXPECT_EQ(TextOf((*frames)[i].raw()), sent[i].second);
      EXPECT_EQ((*frames)[i].header().request_id, i + 1);
      EXPECT_EQ((*frames)[i].header().time_limit_us, 77);
      EXPECT_TRUE((*frames)[i].header().reply());
    }
    EXPECT_TRUE(reader.idle());
  }
}

TEST(Frame, RawBytesAreAlignedForTokens) {
  FrameReader reader;
  std::string stream;
  for (size_t i = 0; i < 20; ++i)
    stream += FrameOf({.type = LIST}, std::string(i, 'p'), "12345678");
  const auto area = reader.Writable();
  std::memcpy(area.data(), stream.data(), stream.size());
  reader.Received(stream.size());
  for (size_t i = 0; i < 20; ++i) {
    const auto frame = reader.Next();
    ASSERT_TRUE(frame.ok() && frame->has_value());
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*frame)->raw().data()) % 8, 0);
    EXPECT_EQ(TextOf((*frame)->raw()), "12345678");
  }
}

TEST(Frame, EveryBitOfTheHeaderCounts) {
  const std::string good = FrameOf({.type = LIST, .request_id = 5}, "payload", "");
  for (size_t bit = 0; bit < kFrameHeaderBytes * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    FrameReader reader;
    EXPECT_TRUE(absl::IsInvalidArgument(ReadAll(reader, bad, bad.size()).status()))
        << "bit " << bit;
  }
}

TEST(Frame, OtherVersionIsNamedWithOurs) {
  FrameReader reader;
  const auto frames = ReadAll(reader, FrameOf({.version = 9, .type = HELLO}, "", ""), 1000);
  EXPECT_TRUE(absl::IsFailedPrecondition(frames.status()));
  EXPECT_THAT(MessageOf(frames.status()), HasSubstr("version 9"));
  EXPECT_THAT(MessageOf(frames.status()), HasSubstr("versions 1 to 1"));
  EXPECT_EQ(reader.failed_header().version, 9);
}

// What another program, or a later version, sends: headers that are whole.
TEST(Frame, EveryFieldIsCheckedUnderARightCheck) {
  const auto decode = [](size_t offset, auto value) {
    std::byte bytes[kFrameHeaderBytes];
    EncodeFrameHeader({.type = LIST, .request_id = 5}, bytes);
    std::memcpy(bytes + offset, &value, sizeof(value));
    const uint32_t check = XXH32(bytes, kFrameHeaderBytes - sizeof(check), 0);
    std::memcpy(bytes + kFrameHeaderBytes - sizeof(check), &check, sizeof(check));
    FrameHeader header;
    return DecodeFrameHeader(bytes, kMaxFrameBytes, &header);
  };
  EXPECT_TRUE(decode(4, kProtocolVersion).ok());
  EXPECT_THAT(MessageOf(decode(0, kFrameMagic + 1)), HasSubstr("magic"));
  EXPECT_TRUE(absl::IsFailedPrecondition(decode(4, uint16_t{kMinProtocolVersion - 1})));
  EXPECT_TRUE(absl::IsFailedPrecondition(decode(4, uint16_t{kProtocolVersion + 1})));
  EXPECT_THAT(MessageOf(decode(32, uint32_t{2})), HasSubstr("unknown flags 0x2"));
}

TEST(Frame, OversizedIsRefusedBeforeItsBytesCome) {
  FrameReader reader(/*max_frame_bytes=*/4096);
  const std::string head = EncodeFrameHead({.type = LIST}, "", 5000);
  const auto frames = ReadAll(reader, head, head.size());
  EXPECT_TRUE(absl::IsInvalidArgument(frames.status()));
  EXPECT_THAT(MessageOf(frames.status()), HasSubstr("5040 bytes, the limit is 4096"));
}

TEST(Frame, LargestSizesDoNotOverflow) {
  FrameHeader header{.type = LIST, .payload_bytes = 0xFFFFFFFF, .raw_bytes = 0xFFFFFFFF};
  std::byte bytes[kFrameHeaderBytes];
  EncodeFrameHeader(header, bytes);
  FrameHeader out;
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeFrameHeader(bytes, 0xFFFFFFFF, &out)));
}

TEST(Frame, HalfAFrameIsNotIdle) {
  const std::string frame = FrameOf({.type = LIST}, "payload", std::string(100000, 'r'));
  for (const size_t cut : {size_t{1}, kFrameHeaderBytes, frame.size() - 1}) {
    FrameReader reader;
    const auto frames = ReadAll(reader, std::string_view(frame).substr(0, cut), 1 << 20);
    ASSERT_TRUE(frames.ok());
    EXPECT_TRUE(frames->empty());
    EXPECT_FALSE(reader.idle()) << cut;
  }
}

TEST(Frame, RandomBytesGiveErrorsAndNothingElse) {
  const uint64_t seed = 20260101;
  std::mt19937_64 random(seed);
  SCOPED_TRACE(fmt::format("seed {}", seed));
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 200, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (round % 2 == 0 && bytes.size() > 4) std::memcpy(bytes.data(), &kFrameMagic, 4);
    FrameReader reader(1 << 20);
    const auto frames = ReadAll(reader, bytes, 1 + random() % 64);
    EXPECT_TRUE(!frames.ok() || bytes.size() < kFrameHeaderBytes);
  }
}

}  // namespace
}  // namespace turnkeep::wire
