// Prefetches carried out by the store: chunks on disk that somebody is expected to use become host
// copies before they are asked for, verified like every read.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <absl/time/clock.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/hint.h"

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
  // Puts in place of the policies, before anything is stored, those.
  void SetPolicies(std::unique_ptr<EvictionPolicy> host, std::unique_ptr<EvictionPolicy> disk) {
    absl::MutexLock lock(&store_.state_.mu);
    const StoreOptions& options = store_.state_.options;
    store_.state_.placement = Placement(
        {.host_capacity_bytes = options.host_bytes, .disk_capacity_bytes = options.disk_bytes},
        std::move(host), std::move(disk));
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

// lru, which writes down what it is told of turns.
class TurnRecorder final : public EvictionPolicy {
 public:
  explicit TurnRecorder(std::string* log) : log_(log) {}
  std::string_view name() const override { return "recorder"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override {
    lru_->Insert(chunk, bytes, now_ns);
  }
  void Touch(ChunkIndex chunk, int64_t now_ns) override { lru_->Touch(chunk, now_ns); }
  void Remove(ChunkIndex chunk) override { lru_->Remove(chunk); }
  void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) override {
    const char* what = !turn.is_use ? "ended" : turn.goes_on ? "goes on" : "begins";
    std::string text = fmt::format(
        "{} {}: {} of {}{}{}", what, turn.number,
        turn.new_tokens == TurnInfo::kUnknownTokens ? "?" : std::to_string(turn.new_tokens),
        turn.context_tokens, turn.tail ? " tail" : "",
        turn.stop == StopReason::kToolUse ? " tool_use" : "");
    EXPECT_EQ(turn.is_use, turn.running);
    if (text == last_) {
      *log_ += "+";
    } else {
      *log_ += "\n" + text;
    }
    last_ = text;
    lru_->NoteTurn(chunk, turn, now_ns);
  }
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override {
    return lru_->FindVictim(accept, limit);
  }

 private:
  const std::unique_ptr<EvictionPolicy> lru_ = *MakePolicy("lru");
  std::string* const log_;
  std::string last_;
};

// Of a turn the policy is told its beginning by the restore, its end by the save's, and how it
// ended by the hint. A plus is one more chunk of which the same was told.
TEST_F(PrefetchPath, ThePolicyIsToldWhenATurnRunsAndWhenItHasEnded) {
  Reopen();
  std::string log;
  PrefetchProbe(opened_->store())
      .SetPolicies(std::make_unique<TurnRecorder>(&log), *MakePolicy("lru"));
  Save(0);  // 200 tokens: three chunks and a tail
  EXPECT_EQ(log, "\nended 1: 200 of 200 tail\nended 1: 200 of 200++");
  log.clear();
  Restore(0);
  EXPECT_EQ(log, "\nbegins 0: ? of 200 tail\nbegins 0: ? of 200++");
  log.clear();
  const KvContext longer = ContextOf(0, 256);
  ASSERT_TRUE(
      SaveAll(kv(), pattern_, {.session = Name(0), .expected_generation = 1, .context = &longer})
          .ok());
  EXPECT_EQ(log, "\ngoes on 2: 64 of 256++\nended 2: 64 of 256+++");
  log.clear();
  const auto answer = kv().Hint({.items = {{.action = HintAction::kExpect,
                                            .target = {.session = Name(0)},
                                            .stop = StopReason::kToolUse}}});
  ASSERT_EQ(answer.items.size(), 1u);
  EXPECT_EQ(log, "\nended 2: 64 of 256 tool_use+++");
  ASSERT_TRUE(opened_->Close().ok());
}

// A save that was given up leaves what it held to the next turn.
TEST_F(PrefetchPath, ASaveThatIsGivenUpEndsItsTurn) {
  Reopen();
  std::string log;
  PrefetchProbe(opened_->store())
      .SetPolicies(std::make_unique<TurnRecorder>(&log), *MakePolicy("lru"));
  Save(0);
  log.clear();
  const KvContext longer = ContextOf(0, 256);
  {
    const auto ticket = BeginSaveOf(
        kv(), pattern_, {.session = Name(0), .expected_generation = 1, .context = &longer});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
  }
  EXPECT_EQ(log, "\ngoes on 2: 64 of 256++\nended 2: 64 of 256++");
}

}  // namespace
}  // namespace testing
}  // namespace turnkeep
