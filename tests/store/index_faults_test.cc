// What survives when the index dies, fails or keeps too much: always one whole view of a session.
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/status.h"
#include "disk_tier/testing/fault_block_device.h"
#include "disk_tier/testing/forwarding_index.h"
#include "disk_tier/testing/memory_block_device.h"
#include "store/durability_fixture.h"

namespace turnkeep::testing {
namespace {

using IndexFaultsTest = DurabilityTest;

// An index that dies at the same moment as the device: what it is given once the device has seen
// `crash_at` operations is reported as done and gets lost.
class CrashingIndex : public ForwardingIndex {
 public:
  CrashingIndex(std::unique_ptr<Index> index, const FaultBlockDevice* device,
                const std::atomic<uint64_t>* crash_at)
      : ForwardingIndex(std::move(index)), device_(device), crash_at_(crash_at) {}

  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override {
    const bool crashed = device_->operation_count() >= crash_at_->load();
    return inner().Apply(crashed ? IndexBatch() : std::move(batch), sync, std::move(done));
  }

 private:
  const FaultBlockDevice* const device_;
  const std::atomic<uint64_t>* const crash_at_;
};

TEST_F(IndexFaultsTest, ACrashAtAnyMomentKeepsWhatWasAcknowledged) {
  const KvPattern pattern(TinyLayout());
  for (uint64_t moment = 0; moment < 16; ++moment) {
    SCOPED_TRACE("crash " + std::to_string(moment) + " operations after the fourth commit");
    auto disk = std::make_shared<MemoryDisk>();
    FaultBlockDevice* device = nullptr;
    std::atomic<uint64_t> crash_at{UINT64_MAX};
    StoreOptions options = Options();
    options.data_dir += std::to_string(moment);
    options.durability = Durability::kSync;
    options.wrap_device = [&](std::unique_ptr<BlockDevice>) {
      auto fault = std::make_unique<FaultBlockDevice>(OpenMemoryBlockDevice(disk));
      device = fault.get();
      return fault;
    };
    options.wrap_index = [&](std::unique_ptr<Index> inner) {
      return std::make_unique<CrashingIndex>(std::move(inner), device, &crash_at);
    };
    Open(options);
    KvContext context = ContextOf(1, 30);
    for (int i = 0; i < 4; ++i) {
      context = Extended(context, 10 + i, 20);
      Save(pattern, "s", context);
    }
    // From here on nothing reaches the disk or the index, though all is reported as done.
    const uint64_t acknowledged = context.size();
    crash_at = device->operation_count() + moment;
    device->DropAllAfter(crash_at);
    for (int i = 0; i < 4; ++i) {
      context = Extended(context, 20 + i, 20);
      Save(pattern, "s", context);
    }
    options.wrap_device = [&](std::unique_ptr<BlockDevice>) { return OpenMemoryBlockDevice(disk); };
    options.wrap_index = nullptr;
    Open(options);
    const RestoreOutcome restored = Restore(pattern, "s", context);
    EXPECT_GE(restored.token_count, acknowledged) << restored.miss_reason;
    EXPECT_EQ(kv().StatSession("s")->token_count, restored.token_count) << restored.miss_reason;
    Close();
  }
}

// An index whose next Apply can be held back and then be let fail.
class HoldingIndex : public ForwardingIndex {
 public:
  using ForwardingIndex::ForwardingIndex;

  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override {
    {
      absl::MutexLock lock(&mu_);
      if (std::exchange(armed_, false)) {
        held_ = std::move(done);
        return absl::OkStatus();
      }
    }
    return inner().Apply(std::move(batch), sync, std::move(done));
  }
  void HoldNext() {
    absl::MutexLock lock(&mu_);
    armed_ = true;
  }
  void FailHeld() {
    IndexDone done;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](IndexDone* held) { return static_cast<bool>(*held); }, &held_));
      done = std::exchange(held_, nullptr);
    }
    done(Unavailable("injected"));
  }

 private:
  absl::Mutex mu_;
  bool armed_ = false;
  IndexDone held_;
};

// Sessions of more than one span block: a change rewrites only the blocks it touches, so a change
// behind one that failed must not be applied on top of what that one would have replaced.
TEST_F(IndexFaultsTest, AChangeBehindAFailedOneNeverMixesTwoViews) {
  const KvPattern pattern(TinyLayout());
  const uint64_t block_tokens = kSlicesPerSpanBlock * TinyLayout().chunk_tokens;
  for (const bool repaired : {false, true}) {
    SCOPED_TRACE(repaired ? "a later change repairs" : "the end comes at once");
    HoldingIndex* index = nullptr;
    StoreOptions options = Options();
    options.data_dir += std::to_string(repaired);
    options.wrap_index = [&](std::unique_ptr<Index> inner) {
      auto holding = std::make_unique<HoldingIndex>(std::move(inner));
      index = holding.get();
      return holding;
    };
    Open(options);
    const KvContext whole = ContextOf(1, 3 * block_tokens);
    Save(pattern, "s", whole);
    KvContext cut = whole;
    cut.Drop(block_tokens + 10, 2 * block_tokens);
    index->HoldNext();
    std::thread truncation([&] {
      EXPECT_FALSE(
          kv().TruncateSession(
                  {.session = "s", .drop_begin = block_tokens + 10, .drop_end = 2 * block_tokens})
              .ok());
    });
    while (kv().StatSession("s")->token_count != cut.size()) std::this_thread::yield();
    std::thread pin([&] { EXPECT_FALSE(kv().PinSession("s").ok()); });
    while (!kv().StatSession("s")->pinned) std::this_thread::yield();
    index->FailHeld();
    truncation.join();
    pin.join();
    if (repaired) {
      EXPECT_TRUE(kv().SetSessionTtl("s", absl::Hours(1)).ok());
      EXPECT_EQ(Restore(pattern, "s", cut).token_count, cut.size());
    }
    options.wrap_index = nullptr;
    Open(options);  // destroys the store without Close
    const KvContext& expected = repaired ? cut : whole;
    ASSERT_EQ(kv().StatSession("s")->token_count, expected.size());
    const auto restored = RestoreAndCheck(kv(), pattern, {.session = "s", .context = &expected});
    ASSERT_TRUE(restored.ok()) << restored.status();
    // What the failed truncation let go of may be a miss.
    EXPECT_GE(restored->token_count, repaired ? cut.size() : block_tokens) << restored->miss_reason;
    EXPECT_EQ(kv().StatSession("s")->pinned, repaired);
    Close();
    ExpectClean(options.data_dir);
  }
}

// An index in which the second span block of a session outlives its deletion.
class IndexThatKeepsABlock : public ForwardingIndex {
 public:
  using ForwardingIndex::ForwardingIndex;

  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override {
    bool deleted = false;
    for (const IndexBatch::Operation& operation : batch.operations()) {
      if (operation.family != IndexFamily::kSpans) continue;
      deleted = deleted || operation.is_delete;
      if (operation.is_delete) continue;
      SpanBlock block;
      TK_CHECK(DecodeSpanBlock(operation.key, operation.value, &block).ok());
      if (block.block_index == 1) kept_ = block;
    }
    const absl::Status applied = inner().Apply(std::move(batch), sync, std::move(done));
    if (!deleted || !kept_) return applied;
    IndexBatch leftover;
    leftover.PutSpanBlock(*std::exchange(kept_, std::nullopt));
    return inner().Apply(std::move(leftover), SyncMode::kNoSync, [](const absl::Status&) {});
  }

 private:
  std::optional<SpanBlock> kept_;
};

TEST_F(IndexFaultsTest, SpanBlocksPastTheEndOfASessionAreNotItsView) {
  const KvPattern pattern(TinyLayout());
  const uint64_t block_tokens = kSlicesPerSpanBlock * TinyLayout().chunk_tokens;
  const KvContext context = ContextOf(1, 2 * block_tokens);
  StoreOptions options = Options();
  options.wrap_index = [](std::unique_ptr<Index> inner) {
    return std::make_unique<IndexThatKeepsABlock>(std::move(inner));
  };
  Open(options);
  Save(pattern, "s", context);
  ASSERT_TRUE(kv().TruncateSession(
                      {.session = "s", .drop_begin = block_tokens, .drop_end = 2 * block_tokens})
                  .ok());
  Close();
  options.wrap_index = nullptr;
  Open(options);
  EXPECT_EQ(kv().StatSession("s")->token_count, block_tokens);
  EXPECT_EQ(Restore(pattern, "s", context).token_count, block_tokens);
  // Dropping it takes the leftover along.
  ASSERT_TRUE(kv().DropSession("s").ok());
  Close();
  ExpectClean();
}

}  // namespace
}  // namespace turnkeep::testing
