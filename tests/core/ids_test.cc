// Ids, names, status helpers and checks.
#include "core/ids.h"

#include <cerrno>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/clock.h"
#include "core/limits.h"
#include "core/status.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

TEST(Ids, HexRoundTrips) {
  ChunkId id;
  for (size_t i = 0; i < 32; ++i) id.bytes[i] = static_cast<uint8_t>(i * 9 + 1);
  EXPECT_EQ(id.Hex().size(), 64u);
  EXPECT_EQ(id.ShortHex(), id.Hex().substr(0, 12));
  EXPECT_EQ(*ChunkId::FromHex(id.Hex()), id);
  std::string upper = id.Hex();
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  EXPECT_EQ(*ChunkId::FromHex(upper), id);
}

TEST(Ids, MalformedHexIsRefused) {
  const std::string good(64, 'a');
  for (const std::string& bad : {std::string(), good.substr(1), good + "a", good.substr(1) + "g",
                                 " " + good.substr(1), good.substr(1) + std::string(1, '\0')}) {
    EXPECT_EQ(ChunkId::FromHex(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Ids, NamesAreUtf8WithoutControlCharacters) {
  for (const std::string& good :
       {std::string("a"), std::string("user 7/chat:3"), std::string(kMaxSessionNameBytes, 'x'),
        std::string("\xe4\xbd\xa0\xe5\xa5\xbd"), std::string("\xf4\x8f\xbf\xbf")}) {
    EXPECT_TRUE(ValidateName("session", good).ok()) << good;
  }
  const struct {
    std::string name;
    std::string message;
  } bad[] = {
      {"", "session: must not be empty"},
      {std::string(kMaxSessionNameBytes + 1, 'x'), "session: 257 bytes, at most 256"},
      {"a\tb", "control character U+0009 at byte 1: \"a\\x09b\""},
      {std::string("a\0b", 3), "control character U+0000"},
      {"a\x7f", "control character U+007F"},
      {"\xc2\x80", "control character U+0080"},
      {"\x80", "not UTF-8 at byte 0"},
      {"a\xc3", "not UTF-8 at byte 1"},
      {"\xc0\xaf", "not UTF-8"},          // overlong
      {"\xe0\x80\xaf", "not UTF-8"},      // overlong
      {"\xf0\x80\x80\xaf", "not UTF-8"},  // overlong
      {"\xed\xa0\x80", "not UTF-8"},      // surrogate
      {"\xf4\x90\x80\x80", "not UTF-8"},  // past U+10FFFF
      {"\xf8\x88\x80\x80\x80", "not UTF-8"},
  };
  for (const auto& test : bad) {
    const absl::Status status = ValidateName("session", test.name);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.message;
    EXPECT_THAT(MessageOf(status), HasSubstr(test.message));
  }
}

TEST(Status, ErrnoKeepsOperationAndNumber) {
  EXPECT_EQ(ErrnoStatus(ENOSPC, "write x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(ENOMEM, "write x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(ENOENT, "open x").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrnoStatus(EACCES, "open x").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrnoStatus(EIO, "read x").code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(ErrnoStatus(EIO, "read x")), HasSubstr("read x: Input/output error"));
}

TEST(CheckDeathTest, FailedCheckNamesFileAndCondition) {
  EXPECT_DEATH(TK_CHECK(1 + 1 == 3), "ids_test.cc:[0-9]+: check failed: 1 \\+ 1 == 3");
}

TEST(Clock, ManualClockMovesOnlyWhenTold) {
  ManualClock clock;
  const int64_t start_s = clock.UnixSeconds();
  clock.AdvanceSeconds(3);
  EXPECT_EQ(clock.NowNs(), 3'000'000'000);
  EXPECT_EQ(clock.UnixSeconds(), start_s + 3);
  const int64_t before_ns = Clock::System()->NowNs();
  EXPECT_LE(before_ns, Clock::System()->NowNs());
  EXPECT_GT(Clock::System()->UnixSeconds(), 1'700'000'000);
}

}  // namespace
}  // namespace turnkeep
