// What was decided is found by chunk and by number, while it is in the ring.
#include "store/decision_log.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

using Kind = PlacementAction::Kind;
using Reason = PlacementAction::Reason;

ChunkId IdOf(uint64_t number) {
  ChunkId id;
  for (size_t i = 0; i < 8; ++i) id.bytes[i] = static_cast<uint8_t>(number >> (8 * i));
  return id;
}

Decision Of(uint64_t chunk, Kind kind, uint16_t tenant = 0) {
  return {.chunk = IdOf(chunk), .tenant = tenant, .action = {.kind = kind}};
}

TEST(DecisionLogTest, TheLastEvictionOfAChunkIsFound) {
  DecisionLog log;
  log.Add(Of(1, Kind::kEvictHost));
  log.Add(Of(2, Kind::kPrefetch));
  log.Add(Of(1, Kind::kEvictDisk));
  EXPECT_EQ(log.LastEviction(IdOf(1))->action.kind, Kind::kEvictDisk);
  EXPECT_EQ(log.LastEviction(IdOf(2)), nullptr) << "a prefetch is none";
  EXPECT_EQ(log.LastEviction(IdOf(3)), nullptr);
}

TEST(DecisionLogTest, TheOldestIsForgotten) {
  DecisionLog log;
  log.Add(Of(1, Kind::kEvictHost));
  log.Add(Of(2, Kind::kEvictHost));
  log.Add(Of(1, Kind::kEvictHost));
  for (uint64_t i = 0; i < DecisionLog::kMaxDecisions - 1; ++i) {
    log.Add(Of(100 + i, Kind::kEvictHost));
  }
  EXPECT_EQ(log.LastEviction(IdOf(2)), nullptr);
  ASSERT_NE(log.LastEviction(IdOf(1)), nullptr);
  EXPECT_EQ(log.LastEviction(IdOf(1))->number, 3u);
  log.Add(Of(99, Kind::kEvictHost));
  EXPECT_EQ(log.LastEviction(IdOf(1)), nullptr);
  EXPECT_EQ(log.After(0, 0, SIZE_MAX).size(), DecisionLog::kMaxDecisions);
}

TEST(DecisionLogTest, TheNewestOfATenantComeInOrder) {
  DecisionLog log;
  for (uint64_t i = 1; i <= 9; ++i) log.Add(Of(i, Kind::kEvictHost, i % 2));
  const auto odd = log.After(1, 0, 3);
  ASSERT_EQ(odd.size(), 3u);
  EXPECT_EQ(odd[0].number, 5u);
  EXPECT_EQ(odd[2].number, 9u);
  EXPECT_EQ(log.After(1, 7, 100).size(), 1u);
  EXPECT_TRUE(log.After(1, 9, 100).empty());
  EXPECT_EQ(log.last_number(), 9u);
}

TEST(DecisionLogTest, WhySaysWhatWasKnown) {
  Decision decision = Of(1, Kind::kEvictHost);
  decision.now_ns = 5'000'000'000;
  decision.action.idle_ns = 2'500'000'000;
  decision.action.of_chunks = 12;
  decision.action.reason = Reason::kWatermark;
  EXPECT_EQ(WhyOf(decision, "lru"),
            "policy lru: the first to go of 12 chunks, unused for 2.5 s, nobody expected it; to "
            "come below the watermark");
  decision.action.next_use = 6'000'000'000;
  decision.action.keep = 2;
  decision.action.reason = Reason::kPrefetch;
  const std::string why = WhyOf(decision, "look_ahead");
  EXPECT_THAT(why, HasSubstr("12 chunks among the retained"));
  EXPECT_THAT(why, HasSubstr("expected in 1.0 s; for a prefetch"));
  EXPECT_EQ(WhatOf(decision), "evicted from host");
  decision.last_copy = true;
  EXPECT_EQ(WhatOf(decision), "lost from host");
}

}  // namespace
}  // namespace turnkeep
