// Chunks on the move between the tiers: caps are never passed, and whatever the store still has
// comes back with the right bytes.
#include <atomic>
#include <random>
#include <thread>

#include <absl/strings/match.h>
#include <absl/time/clock.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

class TiersTest : public ::testing::Test {
 protected:
  void Open(StoreOptions options) {
    auto opened = OpenedStore::Open(std::move(options));
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
  }
  KvStore& kv() { return opened_->kv(); }

  KvPattern Register(const KvLayout& layout) {
    EXPECT_TRUE(kv().RegisterLayout(layout).ok());
    return KvPattern(layout);
  }
  bool Save(const KvPattern& pattern, const std::string& session, const KvContext& context) {
    const auto saved = SaveAll(kv(), pattern, {.session = session, .context = &context});
    EXPECT_TRUE(saved.ok()) << session << ": " << saved.status();
    return saved.ok() && saved->token_count == context.size();
  }
  RestoreOutcome Restore(const KvPattern& pattern, const std::string& session,
                         const KvContext& context) {
    const auto restored = RestoreAndCheck(kv(), pattern, {.session = session, .context = &context});
    EXPECT_TRUE(restored.ok()) << session << ": " << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }

  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<OpenedStore> opened_;
};

// Looks at the status over and over while it lives; a tier over its cap fails the test.
class CapWatcher {
 public:
  explicit CapWatcher(Store& store)
      : thread_([this, &store] {
          while (!stop_) {
            const StoreStatus status = store.GetStatus();
            EXPECT_LE(status.host.reserved_bytes, status.host.capacity_bytes);
            EXPECT_LE(status.host.used_bytes, status.host.capacity_bytes);
            EXPECT_LE(status.disk.reserved_bytes, status.disk.capacity_bytes);
            EXPECT_LE(status.disk.used_bytes, status.disk.capacity_bytes);
            absl::SleepFor(absl::Milliseconds(1));
          }
        }) {}
  ~CapWatcher() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST_F(TiersTest, WhatLeavesTheHostTierComesBackFromDisk) {
  for (const Durability durability : {Durability::kNone, Durability::kWrite}) {
    SCOPED_TRACE(std::string(NameOf(durability)));
    StoreOptions options =
        SmallStoreOptions(directory_.path() + "/" + std::string(NameOf(durability)), &clock_);
    options.host_bytes = 8 * kMiB;
    options.durability = durability;
    Open(options);
    CapWatcher watcher(opened_->store());
    const KvPattern pattern = Register(BlockLayout());  // 64 KiB a chunk
    constexpr int kSessions = 20;                       // of 2 MiB each
    for (int i = 0; i < kSessions; ++i) {
      ASSERT_TRUE(Save(pattern, "s" + std::to_string(i), ContextOf(i, 64 * 32)));
    }
    uint64_t from_disk = 0;
    for (int i = 0; i < kSessions; ++i) {
      const KvContext context = ContextOf(i, 64 * 32);
      const RestoreOutcome restored = Restore(pattern, "s" + std::to_string(i), context);
      EXPECT_EQ(restored.token_count, context.size()) << i << ": " << restored.miss_reason;
      from_disk += restored.disk_tokens;
    }
    if (durability != Durability::kNone) {
      EXPECT_GT(from_disk, 64u * 32 * kSessions / 2);
    }
  }
}

TEST_F(TiersTest, ASessionLargerThanTheHostTierIsStoredAndRestoredInParts) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.host_bytes = 4 * kMiB;
  Open(options);
  CapWatcher watcher(opened_->store());
  const KvPattern pattern = Register(BlockLayout());
  KvContext context;
  uint64_t generation = 0;
  for (int turn = 0; turn < 16; ++turn) {  // 16 MiB in all
    context = Extended(context, turn, 64 * 16);
    const auto saved = SaveAll(
        kv(), pattern, {.session = "s", .expected_generation = generation, .context = &context});
    ASSERT_TRUE(saved.ok()) << saved.status();
    ASSERT_EQ(saved->token_count, context.size());
    generation = saved->generation;
  }
  // As much as fits is restored, and says why no more.
  const RestoreOutcome restored = Restore(pattern, "s", context);
  EXPECT_GT(restored.token_count, 0u);
  if (restored.token_count < context.size()) {
    EXPECT_NE(restored.miss_reason, "");
  }
  EXPECT_EQ(kv().StatSession("s")->restorable_tokens, context.size());
  // And the user can know it before.
  const auto explained = kv().Explain({.session = "s"});
  ASSERT_TRUE(explained.ok()) << explained.status();
  EXPECT_THAT(explained->notes,
              ::testing::Contains(::testing::HasSubstr("leading part that fits")));
}

// What a commit calls durable is there after a restart, also when it pushed out its own beginning.
TEST_F(TiersTest, ASessionLargerThanTheDiskTierIsNotCalledDurable) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.disk_bytes = 8 * kMiB;
  Open(options);
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 256);  // 16 MiB
  const auto saved = SaveAll(kv(), pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_FALSE(saved->durable);
  EXPECT_NE(saved->note, "");
}

TEST_F(TiersTest, RandomWorkUnderSmallCapsNeverGivesWrongBytes) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.host_bytes = 6 * kMiB;
  options.disk_bytes = 24 * kMiB;
  Open(options);
  CapWatcher watcher(opened_->store());
  const std::vector<KvPattern> patterns = {Register(BlockLayout()), Register(TinyLayout()),
                                           Register(EveryKindLayout())};
  constexpr int kThreads = 3;
  const uint64_t seed = 4711;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::thread> threads;
  std::atomic<uint64_t> restored_tokens{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      std::map<std::string, std::pair<int, KvContext>> model;
      for (int i = 0; i < 120 && !HasFailure(); ++i) {
        const std::string name = fmt::format("t{}-{}", t, random() % 12);
        const auto known = model.find(name);
        if (known == model.end() || random() % 3 == 0) {
          (void)kv().DropSession(name);
          const int which = static_cast<int>(random() % patterns.size());
          // A third of them share a prefix with others.
          KvContext context = random() % 3 == 0 ? ContextOf(1, 256) : KvContext();
          context = Extended(context, random() % 100, 1 + random() % 1500);
          const auto saved =
              SaveAll(kv(), patterns[which],
                      {.session = name, .context = &context, .space_deadline = absl::Seconds(30)});
          if (!saved.ok()) {
            ADD_FAILURE() << saved.status();
            return;
          }
          context.Resize(saved->token_count);
          model[name] = {which, context};
        } else {
          const auto restored =
              RestoreAndCheck(kv(), patterns[known->second.first],
                              {.session = name, .context = &known->second.second});
          if (!restored.ok()) {
            ADD_FAILURE() << name << ": " << restored.status();
            return;
          }
          restored_tokens += restored->token_count;
          if (restored->token_count < known->second.second.size()) {
            EXPECT_NE(restored->miss_reason, "") << name;
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(restored_tokens, 0u);
  const auto report = kv().Verify({}, {});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->host_copies_damaged + report->disk_copies_damaged, 0u);
  ASSERT_TRUE(opened_->Close().ok());
}

TEST_F(TiersTest, TheOldestGoWhenTheDiskTierIsFull) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.host_bytes = 4 * kMiB;
  options.disk_bytes = 16 * kMiB;
  Open(options);
  CapWatcher watcher(opened_->store());
  const KvPattern pattern = Register(BlockLayout());
  for (int i = 0; i < 20; ++i) {  // 40 MiB
    ASSERT_TRUE(Save(pattern, "s" + std::to_string(i), ContextOf(i, 64 * 32)));
    clock_.AdvanceSeconds(1);
  }
  EXPECT_EQ(Restore(pattern, "s0", ContextOf(0, 64 * 32)).token_count, 0u);
  EXPECT_EQ(Restore(pattern, "s19", ContextOf(19, 64 * 32)).token_count, 64u * 32);
  const auto explained = kv().Explain({.session = "s0"});
  ASSERT_TRUE(explained.ok()) << explained.status();
  ASSERT_FALSE(explained->parts.empty());
  EXPECT_TRUE(absl::StrContains(explained->parts[0].reason, "evicted"))
      << explained->parts[0].reason;
}

TEST_F(TiersTest, AVerifyIsGivenUpBetweenTwoChunks) {
  Open(SmallStoreOptions(directory_.path() + "/data", &clock_));
  const KvPattern pattern = Register(BlockLayout());
  ASSERT_TRUE(Save(pattern, "s", ContextOf(1, 64 * 32)));
  uint64_t checked = 0;
  bool cancelled = false;
  const auto progress = [&](uint64_t done, uint64_t total) {
    EXPECT_LT(done, total);
    checked = done;
    cancelled = true;
  };
  Store& store = opened_->store();
  const auto given_up = store.Verify(0, {}, progress, [&] { return cancelled; });
  EXPECT_TRUE(absl::IsUnavailable(given_up.status())) << given_up.status();
  EXPECT_GT(checked, 0u);
  // Whether the store closes meanwhile.
  const auto closed = store.Verify(
      0, {}, [&](uint64_t, uint64_t) { (void)opened_->Close(); }, [] { return false; });
  EXPECT_TRUE(absl::IsUnavailable(closed.status())) << closed.status();
}

TEST_F(TiersTest, TheWriteBudgetBoundsDemotion) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.host_bytes = 4 * kMiB;
  options.durability = Durability::kNone;
  options.disk_write_bytes_per_day = 6 * kMiB;
  Open(options);
  const KvPattern pattern = Register(BlockLayout());
  for (int i = 0; i < 15; ++i) {  // 30 MiB
    ASSERT_TRUE(Save(pattern, "s" + std::to_string(i), ContextOf(i, 64 * 32)));
  }
  EXPECT_LE(kv().Status()->disk.used_bytes, 6 * kMiB);
  uint64_t restorable = 0;
  for (int i = 0; i < 15; ++i) {
    restorable += Restore(pattern, "s" + std::to_string(i), ContextOf(i, 64 * 32)).token_count;
  }
  EXPECT_GT(restorable, 0u);
  EXPECT_LT(restorable, 15u * 64 * 32);
}

// A dropped session's chunks leave their numbers to others, and not what the policy knew of them:
// s3_fifo would take a new chunk for one that has come back, and keep it through a scan.
TEST_F(TiersTest, ANewChunkHasNothingOfTheOneThatWasDroppedBefore) {
  StoreOptions options = SmallStoreOptions("", &clock_);
  options.policy = "s3_fifo";
  options.host_bytes = 2 * kMiB;  // 30 chunks and their headers
  options.host_segment_bytes = 2 * kMiB;
  Open(options);
  const KvPattern pattern = Register(BlockLayout());
  const auto name = [](int i) { return "s" + std::to_string(i); };
  const auto save = [&](int i) {
    clock_.AdvanceSeconds(1);
    return Save(pattern, name(i), ContextOf(i, 64));
  };
  int last = 0;
  for (; last < 10; ++last) {
    ASSERT_TRUE(save(last));
    for (int use = 0; use < 3; ++use) Restore(pattern, name(last), ContextOf(last, 64));
  }
  // Until the tenth session, the first that was used once only, has gone.
  const auto missing = [&](int i) { return kv().StatSession(name(i))->restorable_tokens == 0; };
  do {
    ASSERT_LT(last, 100);
    ASSERT_TRUE(save(last++));
  } while (!missing(10));
  ASSERT_FALSE(missing(0));
  ASSERT_TRUE(kv().DropSession(name(10)).ok());
  const int next = last;
  for (; last < next + 60; ++last) ASSERT_TRUE(save(last));
  EXPECT_FALSE(missing(0));
  EXPECT_TRUE(missing(next));
}

TEST_F(TiersTest, SessionsAreBoundedAndThoseThatAreThereGoOn) {
  StoreOptions options = SmallStoreOptions(directory_.path() + "/data", &clock_);
  options.max_sessions = 2;
  Open(options);
  const KvPattern pattern = Register(BlockLayout());
  ASSERT_TRUE(Save(pattern, "a", ContextOf(1, 64)) && Save(pattern, "b", ContextOf(2, 64)));
  const KvContext third = ContextOf(3, 64);
  const auto saved = SaveAll(kv(), pattern, {.session = "c", .context = &third});
  EXPECT_TRUE(absl::IsResourceExhausted(saved.status())) << saved.status();
  const auto forked = kv().ForkSession({.source = "a", .target = "c"});
  EXPECT_TRUE(absl::IsResourceExhausted(forked.status())) << forked.status();
  EXPECT_FALSE(kv().StatSession("c").ok());
  const KvContext longer = Extended(ContextOf(1, 64), 4, 64);
  const auto again =
      SaveAll(kv(), pattern, {.session = "a", .expected_generation = 1, .context = &longer});
  EXPECT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE(kv().DropSession("b").ok());
  EXPECT_TRUE(Save(pattern, "c", third));
}

}  // namespace
}  // namespace turnkeep::testing
