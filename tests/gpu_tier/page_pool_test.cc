// The GPU tier's pool: who is evicted, and that no reader ever sees a chunk that was filled anew.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <absl/synchronization/notification.h>

#include "core/status.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/page_pool.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kBytes = 2048;

ChunkId Id(uint64_t n) {
  ChunkId id;
  std::memcpy(id.bytes.data(), &n, 8);
  id.bytes[31] = 1;
  return id;
}

class PagePoolTest : public ::testing::Test {
 protected:
  void Open(uint64_t slots, absl::Duration delay = absl::ZeroDuration()) {
    device_ = std::make_unique<HostDevice>(HostDeviceOptions{.max_random_delay = delay});
    pool_ = PagePool::Make(*device_, {.budget_bytes = slots * kBytes + 100, .slot_bytes = kBytes})
                .value();
    fill_ = device_->NewStream().value();
    read_ = device_->NewStream().value();
  }
  ~PagePoolTest() override {
    fill_.reset();
    read_.reset();
    pool_.reset();
  }
  absl::Status Put(uint64_t n) {
    TK_ASSIGN_OR_RETURN(PagePool::Pin pin, pool_->Insert({Id(n), kBytes}, *fill_));
    TK_RETURN_IF_ERROR(fill_->Launch([data = pin.data(), n] {
      for (uint64_t i = 0; i < kBytes / 8; ++i) std::memcpy(data + i * 8, &n, 8);
    }));
    return pin.FilledOn(*fill_);
  }
  bool Has(uint64_t n) {
    const auto all = pool_->Residency();
    return std::any_of(all.begin(), all.end(), [&](const auto& r) { return r.id == Id(n); });
  }

  std::unique_ptr<HostDevice> device_;
  std::unique_ptr<PagePool> pool_;
  std::unique_ptr<DeviceStream> fill_, read_;
};

TEST_F(PagePoolTest, TakesItsBudgetInWholeSlotsAndNoMore) {
  Open(3);
  EXPECT_EQ(pool_->slot_count(), 3u);
  EXPECT_EQ(pool_->memory_bytes(), 3 * kBytes);
  EXPECT_EQ(PagePool::Make(*device_, {.budget_bytes = 100, .slot_bytes = kBytes}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool_->Insert({Id(1), kBytes + 1}, *fill_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(PagePoolTest, TheLeastRecentlyUsedUnpinnedChunkGoes) {
  Open(3);
  for (const uint64_t n : {1u, 2u, 3u}) ASSERT_TRUE(Put(n).ok());
  { ASSERT_TRUE(pool_->Find(Id(1)).ok()); }
  {
    const auto pin = pool_->Find(Id(2));
    ASSERT_TRUE(pin.ok());
    { ASSERT_TRUE(pool_->Find(Id(1)).ok()); }
    { ASSERT_TRUE(pool_->Find(Id(3)).ok()); }
    // 2 is the least recently used, and pinned; 1 is next.
    ASSERT_TRUE(Put(4).ok());
    EXPECT_TRUE(Has(2) && Has(3) && Has(4));
    EXPECT_FALSE(Has(1));
  }
  EXPECT_EQ(pool_->counters().evictions, 1u);
  EXPECT_EQ(pool_->Find(Id(1)).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PagePoolTest, WhatIsHeldStaysAndIsNotUsed) {
  Open(2);
  for (const uint64_t n : {1u, 2u}) ASSERT_TRUE(Put(n).ok());
  {
    const auto held = pool_->Hold(Id(1));
    ASSERT_TRUE(held.ok());
    ASSERT_TRUE(Put(3).ok());
    EXPECT_TRUE(Has(1) && Has(3));
  }
  ASSERT_TRUE(Put(4).ok());
  EXPECT_FALSE(Has(1)) << "it was still the one used longest ago";
  EXPECT_EQ(pool_->Hold(Id(1)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(pool_->counters().hits + pool_->counters().misses, 0u);
}

TEST_F(PagePoolTest, AllPinnedIsAnErrorAndNoWait) {
  Open(1);
  ASSERT_TRUE(Put(1).ok());
  const auto pin = pool_->Find(Id(1));
  EXPECT_EQ(Put(2).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_->Drop(Id(1)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Put(1).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(PagePoolTest, AnInsertThatIsGivenUpLeavesNothing) {
  Open(1);
  {
    auto pin = pool_->Insert({Id(1), kBytes}, *fill_);
    ASSERT_TRUE(pin.ok());
    EXPECT_EQ(pool_->Find(Id(1)).status().code(), absl::StatusCode::kNotFound);
  }
  EXPECT_TRUE(pool_->Residency().empty());
  EXPECT_TRUE(Put(1).ok());
}

TEST_F(PagePoolTest, EvictionBlocksNeitherTheCallerNorTheReader) {
  Open(1);
  ASSERT_TRUE(Put(1).ok());
  absl::Notification go;
  uint64_t seen = 0;
  {
    auto pin = pool_->Find(Id(1));
    ASSERT_TRUE(pin.ok());
    ASSERT_TRUE(pin->ReadOn(*read_).ok());
    ASSERT_TRUE(read_
                    ->Launch([&, data = pin->data()] {
                      go.WaitForNotification();
                      std::memcpy(&seen, data, 8);
                    })
                    .ok());
    ASSERT_TRUE(pin->EndedOn(*read_).ok());
  }
  ASSERT_TRUE(Put(2).ok());  // takes the slot at once; its filling waits for the reader
  EXPECT_TRUE(Has(2));
  go.Notify();
  ASSERT_TRUE(read_->Synchronize().ok());
  EXPECT_EQ(seen, 1u);
}

// A random history: whatever is found has its own bytes when the reader gets to it, and the pool
// holds at most its slots.
TEST_F(PagePoolTest, EveryReaderSeesItsOwnChunk) {
  constexpr uint64_t kSeed = 4711;
  RecordProperty("seed", static_cast<int>(kSeed));
  Open(4, absl::Microseconds(20));
  std::mt19937_64 random(kSeed);
  std::atomic<int> wrong = 0;
  for (int step = 0; step < 5000; ++step) {
    const uint64_t n = 1 + random() % 9;
    if (auto pin = pool_->Find(Id(n)); pin.ok()) {
      ASSERT_TRUE(pin->ReadOn(*read_).ok());
      ASSERT_TRUE(read_
                      ->Launch([&wrong, n, data = pin->data()] {
                        for (uint64_t i = 0; i < kBytes / 8; ++i) {
                          uint64_t word;
                          std::memcpy(&word, data + i * 8, 8);
                          if (word != n) ++wrong;
                        }
                      })
                      .ok());
      ASSERT_TRUE(pin->EndedOn(*read_).ok());
    } else {
      ASSERT_TRUE(Put(n).ok()) << "step " << step;
    }
    ASSERT_LE(pool_->Residency().size(), 4u);
  }
  ASSERT_TRUE(read_->Synchronize().ok());
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_GT(pool_->counters().evictions, 100u);
}

}  // namespace
}  // namespace turnkeep::testing
