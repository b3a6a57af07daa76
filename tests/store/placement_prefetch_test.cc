// Prefetch decisions, case by case.
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/units.h"
#include "store/placement.h"

namespace turnkeep {
namespace {

using Kind = PlacementEvent::Kind;
using Action = PlacementAction::Kind;

constexpr uint64_t kChunk = kBlockBytes;
constexpr int64_t kSecond = 1'000'000'000;

class PlacementPrefetch : public testing::Test {
 protected:
  void Open(PlacementOptions options, std::string_view policy = "look_ahead") {
    options.high_watermark = options.low_watermark = 1;
    if (options.disk_capacity_bytes == 0) options.disk_capacity_bytes = 100 * kChunk;
    placement_ = std::make_unique<Placement>(options, *MakePolicy(policy), *MakePolicy(policy));
  }
  // next_use has learned that chunks whose turn ended by tool_use come back after ten seconds, and
  // others not. Chunks from 1000 on, all gone again.
  void Learn() {
    for (int round = 0; round < 500; ++round) {
      const auto tool = static_cast<ChunkIndex>(1000 + 2 * round);
      Turn(tool, StopReason::kToolUse);
      Turn(tool + 1, StopReason::kEndTurn);
      now_ns_ += 10 * kSecond;
      Turn(tool, StopReason::kEndTurn);
    }
  }
  void Turn(ChunkIndex chunk, StopReason stop) {
    Send({.kind = Kind::kTouched, .chunk = chunk});
    Send({.kind = Kind::kTurnEnded, .chunk = chunk, .turn = {.stop = stop}});
  }
  // What the event asks for: "p3" a prefetch of chunk 3, "c3" its cancel, "h3" an eviction.
  std::string Send(PlacementEvent event) {
    std::vector<PlacementAction> actions;
    event.now_ns = now_ns_;
    placement_->Handle(event, &actions);
    std::string text;
    for (const PlacementAction& action : actions) {
      const char letter = action.kind == Action::kPrefetch         ? 'p'
                          : action.kind == Action::kCancelPrefetch ? 'c'
                          : action.kind == Action::kEvictHost      ? 'h'
                                                                   : '?';
      text += fmt::format("{}{} ", letter, action.chunk);
    }
    return text;
  }
  void OnDisk(ChunkIndex chunk) {
    Send({.kind = Kind::kDiskFound, .chunk = chunk, .bytes = kChunk});
  }
  void InHost(ChunkIndex chunk) {
    Send({.kind = Kind::kHostReserved, .bytes = kChunk});
    Send({.kind = Kind::kHostFilled, .chunk = chunk, .bytes = kChunk});
  }
  std::string Expect(ChunkIndex chunk, int64_t next_use) {
    return Send({.kind = Kind::kExpected, .chunk = chunk, .next_use = next_use});
  }
  std::string Filled(ChunkIndex chunk) {
    return Send({.kind = Kind::kHostFilled, .chunk = chunk, .bytes = kChunk});
  }

  std::unique_ptr<Placement> placement_;
  int64_t now_ns_ = 0;
};

TEST_F(PlacementPrefetch, TheSoonestComesFirstAndTheWindowEndsIt) {
  Open({.host_capacity_bytes = 10 * kChunk, .prefetch_bytes = 2 * kChunk});
  for (ChunkIndex c = 0; c < 4; ++c) OnDisk(c);
  Send({.kind = Kind::kDiskReadsBegin});  // collects them
  Expect(0, 40);
  Expect(1, 10);
  Expect(2, 30);
  Expect(3, 20);
  EXPECT_EQ(Send({.kind = Kind::kDiskReadsEnd}), "p1 p3 ");
  EXPECT_EQ(Filled(1), "") << "it holds its part of the window until it is used";
  EXPECT_EQ(Send({.kind = Kind::kTouched, .chunk = 1}), "p2 ");
  EXPECT_EQ(placement_->prefetch().used, 1u);
}

TEST_F(PlacementPrefetch, WithoutAWindowNothingIsPrefetched) {
  Open({.host_capacity_bytes = 10 * kChunk});
  OnDisk(0);
  EXPECT_EQ(Expect(0, 1), "");
}

TEST_F(PlacementPrefetch, WhatIsInHostMemoryIsNotPrefetched) {
  Open({.host_capacity_bytes = 10 * kChunk, .prefetch_bytes = 5 * kChunk});
  OnDisk(0);
  InHost(0);
  EXPECT_EQ(Expect(0, 1), "");
}

TEST_F(PlacementPrefetch, ItEvictsTheUnexpectedAndTheLaterButNothingSooner) {
  Open({.host_capacity_bytes = 3 * kChunk, .prefetch_bytes = 3 * kChunk});
  for (ChunkIndex c = 0; c < 6; ++c) OnDisk(c);
  for (ChunkIndex c = 0; c < 3; ++c) InHost(c);
  Expect(0, 10);
  Expect(1, 50);
  EXPECT_EQ(Expect(3, 30), "h2 p3 ");
  Filled(3);
  EXPECT_EQ(Expect(4, 20), "h1 p4 ");
  Filled(4);
  EXPECT_EQ(Expect(5, 40), "") << "all in host memory is needed sooner";
}

TEST_F(PlacementPrefetch, WhatIsOnlyInHostMemoryIsNotEvictedForIt) {
  Open({.host_capacity_bytes = kChunk, .prefetch_bytes = kChunk});
  InHost(0);
  OnDisk(1);
  EXPECT_EQ(Expect(1, 1), "");
}

TEST_F(PlacementPrefetch, NothingPinnedIsEvictedForIt) {
  Open({.host_capacity_bytes = kChunk, .prefetch_bytes = kChunk});
  OnDisk(0);
  InHost(0);
  OnDisk(1);
  Send({.kind = Kind::kHostPinned, .chunk = 0});
  EXPECT_EQ(Expect(1, 1), "");
  Send({.kind = Kind::kHostUnpinned, .chunk = 0});
  EXPECT_EQ(Send({.kind = Kind::kTick}), "h0 p1 ");
}

TEST_F(PlacementPrefetch, AnExpectationTakenBackCancelsIt) {
  Open({.host_capacity_bytes = 9 * kChunk, .prefetch_bytes = kChunk});
  OnDisk(0);
  OnDisk(1);
  EXPECT_EQ(Expect(0, 1), "p0 ");
  EXPECT_EQ(Expect(1, 2), "");
  EXPECT_EQ(Expect(0, kNoExpectedUse), "c0 ");
  Send({.kind = Kind::kHostUnreserved, .bytes = kChunk});
  EXPECT_EQ(Send({.kind = Kind::kPrefetchFailed, .chunk = 0}), "p1 ");
  EXPECT_EQ(placement_->host().used_bytes, kChunk) << "the reservation of the one in flight";
}

TEST_F(PlacementPrefetch, AFailedOneIsNotTriedAgainForTheSameExpectation) {
  Open({.host_capacity_bytes = 9 * kChunk, .prefetch_bytes = 5 * kChunk});
  OnDisk(0);
  EXPECT_EQ(Expect(0, 7), "p0 ");
  Send({.kind = Kind::kHostUnreserved, .bytes = kChunk});
  EXPECT_EQ(Send({.kind = Kind::kPrefetchFailed, .chunk = 0}), "");
  EXPECT_EQ(Expect(0, 7), "");
  EXPECT_EQ(Expect(0, 6), "p0 ");
}

TEST_F(PlacementPrefetch, TheBudgetSpreadsThemOverTime) {
  Open({.host_capacity_bytes = 9 * kChunk,
        .prefetch_bytes = 9 * kChunk,
        .prefetch_bytes_per_second = kChunk});
  for (ChunkIndex c = 0; c < 3; ++c) OnDisk(c);
  now_ns_ = 10 * kSecond;
  EXPECT_EQ(Expect(0, 1), "p0 ");
  EXPECT_EQ(Expect(1, 2), "");
  EXPECT_EQ(Expect(2, 3), "");
  now_ns_ += kSecond / 2;
  EXPECT_EQ(Send({.kind = Kind::kTick}), "");
  now_ns_ += kSecond / 2;
  EXPECT_EQ(Send({.kind = Kind::kTick}), "p1 ");
}

TEST_F(PlacementPrefetch, LeavingUnusedCountsAsWasted) {
  Open({.host_capacity_bytes = kChunk, .prefetch_bytes = kChunk});
  OnDisk(0);
  Expect(0, 1);
  Filled(0);
  Expect(0, kNoExpectedUse);
  EXPECT_EQ(Send({.kind = Kind::kHostSpaceNeeded, .bytes = kChunk}), "h0 ");
  EXPECT_EQ(placement_->prefetch().wasted, 1u);
  EXPECT_EQ(placement_->prefetch().unused_bytes, 0u);
}

TEST_F(PlacementPrefetch, ThePolicysPredictionBringsWhatIsWorthMore) {
  Open({.host_capacity_bytes = 2 * kChunk, .prefetch_bytes = 2 * kChunk}, "next_use");
  now_ns_ = kSecond;
  Learn();
  for (ChunkIndex c = 0; c < 4; ++c) OnDisk(c);
  for (ChunkIndex c = 0; c < 2; ++c) {
    Turn(c, StopReason::kEndTurn);
    InHost(c);
  }
  Turn(2, StopReason::kEndTurn);
  Turn(3, StopReason::kToolUse);
  EXPECT_EQ(Send({.kind = Kind::kTick}), "h0 p3 ") << "2 is worth no more than what is there";
  Filled(3);
  EXPECT_EQ(Send({.kind = Kind::kTick}), "");
  Turn(3, StopReason::kToolUse);
  EXPECT_EQ(placement_->prefetch().used, 1u);
}

TEST_F(PlacementPrefetch, APredictionIsTriedOnceBetweenTwoUsesAndNotBesideReads) {
  Open({.host_capacity_bytes = 9 * kChunk, .prefetch_bytes = 9 * kChunk}, "next_use");
  now_ns_ = kSecond;
  Learn();
  OnDisk(0);
  Send({.kind = Kind::kDiskReadsBegin});
  Turn(0, StopReason::kToolUse);
  EXPECT_EQ(Send({.kind = Kind::kTick}), "");
  EXPECT_EQ(Send({.kind = Kind::kDiskReadsEnd}), "p0 ");
  Send({.kind = Kind::kHostUnreserved, .bytes = kChunk});
  Send({.kind = Kind::kPrefetchFailed, .chunk = 0});
  EXPECT_EQ(Send({.kind = Kind::kTick}), "");
  Turn(0, StopReason::kToolUse);
  EXPECT_EQ(Send({.kind = Kind::kTick}), "p0 ");
}

TEST_F(PlacementPrefetch, APredictionEvictsNothingThatIsExpected) {
  Open({.host_capacity_bytes = kChunk, .prefetch_bytes = kChunk}, "next_use");
  now_ns_ = kSecond;
  Learn();
  OnDisk(0);
  OnDisk(1);
  Turn(0, StopReason::kEndTurn);
  InHost(0);
  Expect(0, now_ns_ + 3600 * kSecond);
  Turn(1, StopReason::kToolUse);
  EXPECT_EQ(Send({.kind = Kind::kTick}), "");
  EXPECT_EQ(Expect(0, kNoExpectedUse), "");
  EXPECT_EQ(Send({.kind = Kind::kTick}), "h0 p1 ");
}

}  // namespace
}  // namespace turnkeep
