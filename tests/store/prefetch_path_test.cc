// Prefetches carried out by the store: chunks on disk that somebody is expected to use become host
// copies before they are asked for, verified like every read.
#include <string>

#include <absl/time/clock.h>
#include <gtest/gtest.h>

#include "store/disk_sessions.h"
#include "store/store_impl.h"

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

class PrefetchPath : public DiskSessions {
 protected:
  PrefetchPath() : DiskSessions(200) {}
  // Sessions s0 … s9.
  void OpenWithSessions(double prefetch_share) {
    options_.prefetch_share = prefetch_share;
    DiskSessions::OpenWithSessions(10);
  }
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
