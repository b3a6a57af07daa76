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
  HintRequest hint;
  *hint.add_items() = item;
  *hint.add_items() = item;
  hint.add_queue()->mutable_target()->add_block_hashes("two");
  const MessagePart target[] = {{2, &kPlain}}, third[] = {{3, &kPlain}}, times[] = {{4, nullptr}};
  const struct {
    const char* what;
    std::string bytes;
    size_t fields;
    MessageParts message;
  } cases[] = {{"nothing", "", 0, {}},
               {"packed numbers are one", item.SerializeAsString(), 4, {}},
               {"those of the target, too", item.SerializeAsString(), 6, {target}},
               {"packed numbers are as many", item.SerializeAsString(), 6, {times}},
               {"both, in items of which each is one", hint.SerializeAsString(), 21, {kHintParts}},
               {"bytes and doubles", speed.SerializeAsString(), 2, {}},
               {"bytes are not counted", speed.SerializeAsString(), 2, {third}}};
  for (const auto& one : cases) {
    SCOPED_TRACE(one.what);
    EXPECT_TRUE(Check(one.bytes, {"x", one.fields, one.message}).ok());
    if (one.fields == 0) continue;
    const absl::Status refused = Check(one.bytes, {"x", one.fields - 1, one.message});
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  }
}

// Of five bytes, with bits above the 32 that Protobuf looks at.
TEST(WireFields, ANumberIsWhatProtobufTakesItFor) {
  BeginSaveRequest save;
  save.mutable_prompt()->add_block_hashes("one");
  std::string bytes = save.SerializeAsString();
  ASSERT_EQ(bytes[0], 5 << 3 | 2);
  bytes.replace(0, 1, std::string("\xaa\x80\x80\x80\x70", 5));
  BeginSaveRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(bytes));
  ASSERT_EQ(parsed.prompt().block_hashes_size(), 1);
  EXPECT_TRUE(Check(bytes, {"x", 2, kSaveFields.message}).ok());
  EXPECT_FALSE(Check(bytes, {"x", 1, kSaveFields.message}).ok());
}

TEST(WireFields, WhatIsNoMessageEndsTheCount) {
  const MessagePart parts[] = {{1, &kPlain}, {2, &kHintItem}, {3, nullptr}};
  const FieldLimit two = {"x", 2, {parts}};
  for (const std::string& bytes :
       {std::string("\x0a", 1), std::string("\x0a\xff\xff\xff\xff\x0f", 6), std::string(20, '\xff'),
        std::string("\x0e\x00", 2), std::string("\x09\x01", 2)}) {
    EXPECT_TRUE(Check(bytes, two).ok());
  }
  std::mt19937_64 random(7);  // the seed
  for (int round = 0; round < 5000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    EXPECT_TRUE(Check(bytes, {"x", 80, {parts}}).ok());
  }
}

}  // namespace
}  // namespace turnkeep::wire
