// Restores from disk by an engine that has some of the chunks in its page pool.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "store/disk_sessions.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kTokens = 256;  // four whole chunks

class HeldChunks : public DiskSessions {
 protected:
  HeldChunks() : DiskSessions(kTokens) { options_.prefetch_share = 0; }

  std::vector<ChunkId> ChunksOf(const std::string& session) {
    std::vector<ChunkId> ids;
    const auto detail = kv().ShowSession(session);
    EXPECT_TRUE(detail.ok()) << detail.status();
    for (const SessionSpan& span : detail->spans) ids.push_back(span.chunk);
    return ids;
  }
};

TEST_F(HeldChunks, OnlyTheRestIsReadFromDisk) {
  OpenWithSessions(1);
  std::vector<ChunkId> ids = ChunksOf("s0");
  ASSERT_EQ(ids.size(), 4u);
  const RestoreOutcome restored = Restore(0, {.held_chunks = {ids[0], ids[2], ids[3]}});
  EXPECT_EQ(restored.token_count, kTokens);
  EXPECT_EQ(restored.held_tokens, kTokens * 3 / 4);
  EXPECT_EQ(restored.disk_tokens, kTokens / 4);
  EXPECT_EQ(Count("disk_read_chunks_total"), 1);
  EXPECT_EQ(HostBytes(), session_bytes_ / 4);
}

TEST_F(HeldChunks, OfAllNothingIsReadAndNothingPinned) {
  OpenWithSessions(1);
  EXPECT_EQ(Restore(0, {.held_chunks = ChunksOf("s0")}).held_tokens, kTokens);
  EXPECT_EQ(Count("disk_read_chunks_total"), 0);
  EXPECT_EQ(HostBytes(), 0u);
  EXPECT_EQ(Restore(0).disk_tokens, kTokens) << "and it is where it was";
}

// The session's chunks stay known as long as it lives.
TEST_F(HeldChunks, WhatNoTierHasAnyMoreCounts) {
  OpenWithSessions(1);
  const std::vector<ChunkId> ids = ChunksOf("s0");
  device_->Inject({.at = 0, .kind = FaultKind::kEio, .for_good = true, .only = {DeviceOp::kRead}});
  EXPECT_EQ(Restore(0, {.held_chunks = {ids[0], ids[2], ids[3]}}).token_count, kTokens / 4);
  device_->ClearFaults();
  EXPECT_EQ(Restore(0).token_count, kTokens / 4);
  const RestoreOutcome restored = Restore(0, {.held_chunks = {ids[1]}});
  EXPECT_EQ(restored.token_count, kTokens);
  EXPECT_EQ(restored.held_tokens, kTokens / 4);
}

TEST_F(HeldChunks, NeedNoRoomInTheHostTier) {
  OpenWithSessions(1);
  options_.host_bytes = session_bytes_ / 2;
  Reopen();
  EXPECT_LT(Restore(0).token_count, kTokens);
  const std::vector<ChunkId> ids = ChunksOf("s0");
  EXPECT_EQ(Restore(0, {.held_chunks = {ids[0], ids[1], ids[2]}}).token_count, kTokens);
}

}  // namespace
}  // namespace turnkeep::testing
