// What hints say of keeping: dropped soon first, then the policy's order, then the retained.
#include "store/keep_order.h"

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

// Every chunk that may go, in the order of going.
std::string OrderOf(KeepOrder& order) {
  std::string text;
  (void)order.FindVictim(
      [&](ChunkIndex c) {
        text += fmt::format("{} ", c);
        return false;
      },
      1000);
  return text;
}

TEST(KeepOrderTest, ThreePartsAroundThePolicy) {
  KeepOrder order(*MakePolicy("lru"));
  for (ChunkIndex c = 0; c < 7; ++c) order.Insert(c, kChunk, c + 1);
  order.SetKeep(0, 2, kChunk, 10);
  order.SetKeep(1, 1, kChunk, 10);
  order.SetKeep(5, kDropSoonKeep, kChunk, 10);
  order.SetKeep(4, kDropSoonKeep, kChunk, 11);
  EXPECT_EQ(OrderOf(order), "5 4 2 3 6 1 0 ");
  order.Touch(5, 12);
  EXPECT_EQ(OrderOf(order), "4 5 2 3 6 1 0 ") << "in a part the least recently used goes first";
  order.SetKeep(0, kPolicyKeep, kChunk, 13);
  order.SetKeep(4, kPolicyKeep, kChunk, 14);
  EXPECT_EQ(OrderOf(order), "5 2 3 6 0 4 1 ");
  order.Remove(5);
  order.Remove(1);
  EXPECT_EQ(OrderOf(order), "2 3 6 0 4 ");
  EXPECT_EQ(order.name(), "lru");
}

TEST(KeepOrderTest, ARetainedChunkIsShownOnlyWhenThePolicyHasShownAll) {
  for (const std::string_view policy : PolicyNames()) {
    SCOPED_TRACE(policy);
    KeepOrder order(*MakePolicy(policy));
    for (ChunkIndex c = 0; c < 10; ++c) order.Insert(c, kChunk, c + 1);
    order.SetKeep(3, 1, kChunk, 20);
    const auto never = [](ChunkIndex) { return false; };
    EXPECT_EQ(order.FindVictim([](ChunkIndex c) { return c == 3; }, 9), kNoChunk);
    EXPECT_EQ(order.FindVictim([](ChunkIndex c) { return c == 3; }, 10), 3u);
    EXPECT_EQ(order.FindVictim(never, 1000), kNoChunk);
  }
}

TEST(KeepOrderTest, WhatIsSaidOfAChunkOutsideTheTierCountsWhenItEnters) {
  KeepOrder order(*MakePolicy("lru"));
  order.Insert(0, kChunk, 1);
  order.SetKeep(1, 3, 0, 1);
  order.Insert(1, kChunk, 2);
  order.Insert(2, kChunk, 3);
  EXPECT_EQ(OrderOf(order), "0 2 1 ");
}

class PlacementKeep : public testing::Test {
 protected:
  void Open(PlacementOptions options) {
    options.high_watermark = options.low_watermark = 1;
    placement_ = std::make_unique<Placement>(options, *MakePolicy("lru"), *MakePolicy("lru"));
  }
  // "h3" host copy of chunk 3 evicted, "w3" written, "p3" prefetched.
  std::string Send(PlacementEvent event) {
    std::vector<PlacementAction> actions;
    event.now_ns = ++now_ns_;
    placement_->Handle(event, &actions);
    std::string text;
    for (const PlacementAction& action : actions) {
      const char letter = action.kind == Action::kPrefetch      ? 'p'
                          : action.kind == Action::kWriteToDisk ? 'w'
                          : action.kind == Action::kEvictHost   ? 'h'
                                                                : '?';
      text += fmt::format("{}{} ", letter, action.chunk);
    }
    return text;
  }
  void InHost(ChunkIndex chunk) {
    Send({.kind = Kind::kHostReserved, .bytes = kChunk});
    Send({.kind = Kind::kHostFilled, .chunk = chunk, .bytes = kChunk});
  }
  std::string NeedRoom() { return Send({.kind = Kind::kHostSpaceNeeded, .bytes = kChunk}); }

  std::unique_ptr<Placement> placement_;
  int64_t now_ns_ = 0;
};

TEST_F(PlacementKeep, WhatIsDroppedSoonGoesFirstAndUnwritten) {
  Open({.host_capacity_bytes = 3 * kChunk, .disk_capacity_bytes = 9 * kChunk});
  for (ChunkIndex c = 0; c < 3; ++c) InHost(c);
  Send({.kind = Kind::kKeep, .chunk = 2, .keep = kDropSoonKeep});
  EXPECT_EQ(NeedRoom(), "h2 ");
  InHost(3);
  EXPECT_EQ(NeedRoom(), "w0 ") << "the others are written before they go";
}

TEST_F(PlacementKeep, AUseOrAnExpectationTakesDropSoonBack) {
  Open({.host_capacity_bytes = 3 * kChunk});
  for (ChunkIndex c = 0; c < 3; ++c) InHost(c);
  Send({.kind = Kind::kKeep, .chunk = 2, .keep = kDropSoonKeep});
  Send({.kind = Kind::kTouched, .chunk = 2});
  Send({.kind = Kind::kKeep, .chunk = 1, .keep = kDropSoonKeep});
  Send({.kind = Kind::kExpected, .chunk = 1, .next_use = 5});
  EXPECT_EQ(NeedRoom(), "h0 ");
}

TEST_F(PlacementKeep, DropSoonEndsWithTheLastCopy) {
  Open({.host_capacity_bytes = 2 * kChunk});
  InHost(0);
  InHost(1);
  Send({.kind = Kind::kKeep, .chunk = 1, .keep = kDropSoonKeep});
  Send({.kind = Kind::kHostLost, .chunk = 1});
  Send({.kind = Kind::kKeep, .chunk = 1, .keep = kDropSoonKeep});  // there is nothing to drop
  InHost(1);
  EXPECT_EQ(NeedRoom(), "h0 ");
}

TEST_F(PlacementKeep, WhatIsRetainedGoesLastAndForNoPrefetch) {
  Open({.host_capacity_bytes = 2 * kChunk,
        .disk_capacity_bytes = 9 * kChunk,
        .prefetch_bytes = 2 * kChunk});
  for (ChunkIndex c = 0; c < 3; ++c) {
    Send({.kind = Kind::kDiskFound, .chunk = c, .bytes = kChunk});
  }
  InHost(0);
  InHost(1);
  Send({.kind = Kind::kKeep, .chunk = 0, .keep = 1});
  Send({.kind = Kind::kKeep, .chunk = 1, .keep = 2});
  EXPECT_EQ(Send({.kind = Kind::kExpected, .chunk = 2, .next_use = 1}), "");
  Send({.kind = Kind::kKeep, .chunk = 1, .keep = kPolicyKeep});
  EXPECT_EQ(Send({.kind = Kind::kTick}), "h1 p2 ");
  Send({.kind = Kind::kHostPinned, .chunk = 2});
  EXPECT_EQ(NeedRoom(), "h0 ") << "retained is not pinned";
}

}  // namespace
}  // namespace turnkeep
