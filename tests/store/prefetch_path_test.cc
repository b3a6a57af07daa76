// Prefetches carried out by the store: chunks on disk that somebody is expected to use become host
// copies before they are asked for, verified like every read.
#include <string>

#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include "store/store_impl.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep {

// Says for all chunks of a store that somebody is expected to use them, or that nobody is.
class PrefetchProbe {
 public:
  explicit PrefetchProbe(Store& store) : store_(static_cast<StoreImpl&>(store)) {}
  void ExpectAll(int64_t next_use) {
    absl::MutexLock lock(&store_.state_.mu);
    for (ChunkIndex i = 0; i < store_.state_.catalog.end(); ++i)
      if (store_.state_.catalog[i].in_use) store_.state_.NotifyExpected(i, next_use);
  }
  Placement::PrefetchUsage Usage() {
    absl::MutexLock lock(&store_.state_.mu);
    return store_.state_.placement.prefetch();
  }
  // Until nothing is being prefetched; false after ten seconds.
  bool AwaitIdle() {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (absl::Now() < deadline) {
      if (Usage().in_flight_bytes == 0) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }

 private:
  StoreImpl& store_;
};

namespace testing {
namespace {

class PrefetchPath : public ::testing::Test {
 protected:
  // A store with sessions s0 … s9 of 200 tokens, all on disk and none in host memory.
  void OpenWithSessions(double prefetch_share) {
    StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
    options.prefetch_share = prefetch_share;
    for (const bool fill : {true, false}) {
      opened_.reset();
      auto opened = OpenedStore::Open(options);
      ASSERT_TRUE(opened.ok()) << opened.status();
      opened_ = *std::move(opened);
      ASSERT_TRUE(kv().RegisterLayout(BlockLayout()).ok());
      for (uint64_t i = 0; fill && i < 10; ++i) {
        if (kv().StatSession(Name(i)).ok()) continue;
        const KvContext context = ContextOf(i, 200);
        ASSERT_TRUE(SaveAll(kv(), pattern_, {.session = Name(i), .context = &context}).ok());
      }
      if (!fill) continue;
      ASSERT_TRUE(opened_->Close().ok());
    }
    ASSERT_EQ(kv().Status()->host.used_bytes, 0u);
  }
  RestoreOutcome Restore(uint64_t i) {
    const KvContext context = ContextOf(i, 200);
    const auto restored =
        RestoreAndCheck(kv(), pattern_, {.session = Name(i), .context = &context});
    EXPECT_TRUE(restored.ok()) << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }
  static std::string Name(uint64_t i) { return "s" + std::to_string(i); }
  KvStore& kv() { return opened_->kv(); }

  TemporaryDirectory directory_;
  ManualClock clock_;
  const KvPattern pattern_{BlockLayout()};
  std::unique_ptr<OpenedStore> opened_;
};

TEST_F(PrefetchPath, WhatIsExpectedIsInHostMemoryWhenItIsAskedFor) {
  OpenWithSessions(0.9);
  PrefetchProbe probe(opened_->store());
  probe.ExpectAll(1);
  ASSERT_TRUE(probe.AwaitIdle());
  const Placement::PrefetchUsage usage = probe.Usage();
  EXPECT_GT(usage.begun, 0u);
  EXPECT_EQ(usage.failed, 0u);
  EXPECT_EQ(usage.waiting_count, 0u);
  for (uint64_t i = 0; i < 10; ++i) {
    const RestoreOutcome restored = Restore(i);
    EXPECT_EQ(restored.token_count, 200u) << restored.miss_reason;
    EXPECT_EQ(restored.disk_tokens, 0u) << Name(i);
  }
  EXPECT_EQ(probe.Usage().used, usage.begun);
  EXPECT_EQ(probe.Usage().unused_bytes, 0u);
  ASSERT_TRUE(opened_->Close().ok());
}

TEST_F(PrefetchPath, NothingIsPrefetchedWithoutAWindow) {
  OpenWithSessions(0);
  PrefetchProbe probe(opened_->store());
  probe.ExpectAll(1);
  EXPECT_EQ(probe.Usage().begun, 0u);
  EXPECT_GT(probe.Usage().waiting_count, 0u);
  EXPECT_EQ(Restore(3).disk_tokens, 200u);
}

// Restores at the same time join or pass the prefetches; closing in the middle ends them.
TEST_F(PrefetchPath, RestoresAndClosingInTheMiddleAreRight) {
  OpenWithSessions(0.9);
  PrefetchProbe probe(opened_->store());
  for (int round = 0; round < 20; ++round) {
    probe.ExpectAll(1 + round);
    const RestoreOutcome restored = Restore(static_cast<uint64_t>(round) % 10);
    EXPECT_EQ(restored.token_count, 200u) << restored.miss_reason;
    if (round % 3 == 0) probe.ExpectAll(kNoExpectedUse);
  }
  ASSERT_TRUE(opened_->Close().ok());
  OpenWithSessions(0.9);
  PrefetchProbe(opened_->store()).ExpectAll(1);
  opened_.reset();  // without Close
}

}  // namespace
}  // namespace testing
}  // namespace turnkeep
