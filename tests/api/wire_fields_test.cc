// Fields are counted as Protobuf sees them, and what is no message is left to it.
#include "api/wire_fields.h"

#include <random>
#include <string>

#include <gtest/gtest.h>

#include "api/turnkeep.pb.h"

namespace turnkeep::wire {
namespace {

absl::Status Check(const std::string& bytes, const FieldLimit& limit) {
  return CheckFields(std::as_bytes(std::span(bytes)), limit);
}

TEST(WireFields, AreCountedAtTheTopAndInTheNamedOne) {
  HintItem item;  // of every kind that the messages have
  item.set_action(3);
  item.mutable_target()->set_session("s");
  item.mutable_target()->add_block_hashes("one");
  item.add_expected_times_us(-1);
  item.add_expected_times_us(1);
  item.set_priority(-7);
  EngineSpeed speed;
  speed.set_layout(std::string(300, 'l'));
  speed.set_prefill_tokens_per_s(1.5);
  const struct {
    const char* what;
    std::string bytes;
    size_t fields;
    uint32_t nested;
  } cases[] = {{"nothing", "", 0, 0},
               {"packed numbers are one", item.SerializeAsString(), 4, 0},
               {"those of the target, too", item.SerializeAsString(), 6, 2},
               {"bytes and doubles", speed.SerializeAsString(), 2, 0},
               {"bytes are not counted", speed.SerializeAsString(), 2, 3}};
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    EXPECT_TRUE(Check(one.bytes, {"x", one.fields, one.nested}).ok());
    if (one.fields == 0) continue;
    const absl::Status refused = Check(one.bytes, {"x", one.fields - 1, one.nested});
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  }
}

TEST(WireFields, WhatIsNoMessageEndsTheCount) {
  const FieldLimit two = {"x", 2, 1};
  for (const std::string& bytes :
       {std::string("\x0a", 1), std::string("\x0a\xff\xff\xff\xff\x0f", 6), std::string(20, '\xff'),
        std::string("\x0e\x00", 2), std::string("\x09\x01", 2)}) {
    EXPECT_TRUE(Check(bytes, two).ok());
  }
  std::mt19937_64 random(7);  // the seed
  for (int round = 0; round < 5000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    EXPECT_TRUE(Check(bytes, {"x", 80, static_cast<uint32_t>(random() % 4)}).ok());
  }
}

}  // namespace
}  // namespace turnkeep::wire
