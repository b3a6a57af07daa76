// What survives the end of a store: by durability, after Close and without, with what is shown
// of sessions, and who may open a data directory.
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include <absl/strings/match.h>
#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/status.h"
#include "disk_tier/fsck.h"
#include "disk_tier/testing/fault_block_device.h"
#include "disk_tier/testing/forwarding_index.h"
#include "disk_tier/testing/memory_block_device.h"
#include "testing/kv_pattern.h"
#include "testing/opened_store.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {
namespace {

class DurabilityTest : public ::testing::Test {
 protected:
  StoreOptions Options() { return SmallStoreOptions(directory_.path() + "/data", &clock_); }

  void Open(StoreOptions options) {
    opened_.reset();
    auto opened = OpenedStore::Open(std::move(options));
    ASSERT_TRUE(opened.ok()) << opened.status();
    opened_ = *std::move(opened);
    for (const LayoutCase& c : StandardLayouts()) {
      ASSERT_TRUE(kv().RegisterLayout(c.layout).ok()) << c.name;
    }
  }
  void Close() {
    const absl::Status closed = opened_->Close();
    ASSERT_TRUE(closed.ok()) << closed;
    opened_.reset();
  }
  KvStore& kv() { return opened_->kv(); }

  CommitResult Save(const KvPattern& pattern, const std::string& session,
                    const KvContext& context) {
    const auto info = kv().StatSession(session);
    const auto saved = SaveAll(kv(), pattern,
                               {.session = session,
                                .expected_generation = info.ok() ? info->generation : 0,
                                .context = &context});
    EXPECT_TRUE(saved.ok()) << session << ": " << saved.status();
    return saved.ok() ? *saved : CommitResult{};
  }

  RestoreOutcome Restore(const KvPattern& pattern, const std::string& session,
                         const KvContext& context) {
    const auto restored = RestoreAndCheck(
        kv(), pattern, {.session = session, .context = &context, .give_prompt = false});
    EXPECT_TRUE(restored.ok()) << session << ": " << restored.status();
    return restored.ok() ? *restored : RestoreOutcome{};
  }

  void ExpectClean() { ExpectClean(directory_.path() + "/data"); }
  void ExpectClean(const std::string& data_dir) {
    const auto report = Fsck(data_dir, {});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->Clean()) << (report->problems.empty() ? "" : report->problems[0]);
  }

  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<OpenedStore> opened_;
};

TEST_F(DurabilityTest, EverythingComesBackAfterClose) {
  for (const Durability durability : {Durability::kNone, Durability::kWrite, Durability::kSync}) {
    SCOPED_TRACE(std::string(NameOf(durability)));
    StoreOptions options = Options();
    options.data_dir += NameOf(durability);
    options.durability = durability;
    Open(options);
    for (const LayoutCase& c : StandardLayouts()) {
      Save(KvPattern(c.layout, c.hashed), c.name, ContextOf(1, 3 * c.layout.chunk_tokens + 5));
    }
    const StoreStatus before = *kv().Status();
    Close();
    Open(options);
    const StoreStatus after = *kv().Status();
    EXPECT_EQ(after.session_count, before.session_count);
    EXPECT_EQ(after.chunk_count, before.chunk_count);
    EXPECT_EQ(after.host.used_bytes, 0u);
    for (const LayoutCase& c : StandardLayouts()) {
      const KvContext context = ContextOf(1, 3 * c.layout.chunk_tokens + 5);
      const RestoreOutcome restored = Restore(KvPattern(c.layout, c.hashed), c.name, context);
      EXPECT_EQ(restored.token_count, context.size()) << c.name << ": " << restored.miss_reason;
      EXPECT_EQ(restored.disk_tokens, context.size()) << c.name;
    }
    Close();
  }
}

TEST_F(DurabilityTest, WithoutCloseADurableCommitSurvivesAndAnotherIsAMiss) {
  const KvPattern pattern(BlockLayout());
  for (const Durability durability : {Durability::kNone, Durability::kWrite, Durability::kSync}) {
    SCOPED_TRACE(std::string(NameOf(durability)));
    StoreOptions options = Options();
    options.data_dir += NameOf(durability);
    options.durability = durability;
    Open(options);
    bool durable = true;
    for (int i = 0; i < 5; ++i) {
      durable = Save(pattern, "s" + std::to_string(i), ContextOf(i, 200)).durable && durable;
    }
    EXPECT_TRUE(durable);
    Open(options);  // destroys the store without Close
    for (int i = 0; i < 5; ++i) {
      const KvContext context = ContextOf(i, 200);
      const uint64_t tokens = Restore(pattern, "s" + std::to_string(i), context).token_count;
      if (durability != Durability::kNone) {
        EXPECT_EQ(tokens, 200u);
      }
    }
    Close();
  }
}

TEST_F(DurabilityTest, SyncedCommitsSurviveAPowerCut) {
  const KvPattern pattern(BlockLayout());
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    auto disk = std::make_shared<MemoryDisk>();
    StoreOptions options = Options();
    options.data_dir += std::to_string(seed);
    options.durability = Durability::kSync;
    options.wrap_device = [&](std::unique_ptr<BlockDevice>) {
      return OpenMemoryBlockDevice(disk, seed);
    };
    Open(options);
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(Save(pattern, "s" + std::to_string(i), ContextOf(i, 150)).durable);
    }
    // One is under way when the power goes.
    const KvContext unfinished = ContextOf(9, 150);
    auto ticket = BeginSaveOf(kv(), pattern, {.session = "unfinished", .context = &unfinished});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    ASSERT_TRUE(FillTicket(**ticket, pattern, unfinished).ok());
    ticket->reset();
    opened_.reset();
    disk->LoseUnsynced(seed);
    Open(options);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(Restore(pattern, "s" + std::to_string(i), ContextOf(i, 150)).token_count, 150u);
    }
    EXPECT_EQ(kv().Status()->session_count, 4u);
    Close();
  }
}

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

TEST_F(DurabilityTest, ACrashAtAnyMomentKeepsWhatWasAcknowledged) {
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
TEST_F(DurabilityTest, AChangeBehindAFailedOneNeverMixesTwoViews) {
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
      EXPECT_FALSE(kv().TruncateSession({.session = "s",
                                         .drop_begin = block_tokens + 10,
                                         .drop_end = 2 * block_tokens})
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

TEST_F(DurabilityTest, SpanBlocksPastTheEndOfASessionAreNotItsView) {
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

TEST_F(DurabilityTest, SessionsComeBackAsTheyWere) {
  const KvPattern pattern(TinyLayout());
  Open(Options());
  const KvContext base = ContextOf(1, 100);
  Save(pattern, "base", base);
  ASSERT_TRUE(kv().ForkSession({.source = "base", .target = "fork", .token_count = 50}).ok());
  ASSERT_TRUE(kv().ForkSession({.source = "base", .target = "cut"}).ok());
  ASSERT_TRUE(kv().TruncateSession({.session = "cut", .drop_begin = 5, .drop_end = 50}).ok());
  KvContext cut = base;
  cut.Drop(5, 50);
  cut = Extended(cut, 2, 40);
  Save(pattern, "cut", cut);
  ASSERT_TRUE(kv().RenameSession("cut", "renamed").ok());
  ASSERT_TRUE(kv().PinSession("base").ok());
  ASSERT_TRUE(kv().SetSessionTtl("fork", absl::Seconds(1000)).ok());
  Save(pattern, "dropped", ContextOf(3, 40));
  ASSERT_TRUE(kv().DropSession("dropped").ok());
  const auto before = kv().ListSessions({});
  ASSERT_TRUE(before.ok()) << before.status();
  Close();
  ExpectClean();

  Open(Options());
  const auto after = kv().ListSessions({});
  ASSERT_TRUE(after.ok()) << after.status();
  ASSERT_EQ(after->size(), before->size());
  for (size_t i = 0; i < after->size(); ++i) {
    const SessionInfo& a = (*after)[i];
    const SessionInfo& b = (*before)[i];
    SCOPED_TRACE(b.name);
    EXPECT_EQ(a.name, b.name);
    EXPECT_EQ(a.generation, b.generation);
    EXPECT_EQ(a.token_count, b.token_count);
    EXPECT_EQ(a.restorable_tokens, b.token_count);
    EXPECT_EQ(a.created_unix_s, b.created_unix_s);
    EXPECT_EQ(a.expires_unix_s, b.expires_unix_s);
    EXPECT_EQ(a.pinned, b.pinned);
    EXPECT_EQ(a.truncated, b.truncated);
  }
  EXPECT_EQ(Restore(pattern, "renamed", cut).token_count, cut.size());
  KvContext fork = base;
  fork.Resize(50);
  EXPECT_EQ(Restore(pattern, "fork", fork).token_count, 50u);
  // Work goes on: by tokens, and by appending to the truncated one.
  const auto by_tokens = RestoreAndCheck(kv(), pattern, {.context = &base});
  ASSERT_TRUE(by_tokens.ok()) << by_tokens.status();
  EXPECT_EQ(by_tokens->token_count, 100u);
  cut = Extended(cut, 4, 30);
  Save(pattern, "renamed", cut);
  EXPECT_EQ(Restore(pattern, "renamed", cut).token_count, cut.size());
  clock_.AdvanceSeconds(1001);
  EXPECT_EQ(Restore(pattern, "fork", fork).token_count, 0u);
  Close();
}

TEST_F(DurabilityTest, TheAccountsAreExactAfterManyLives) {
  const KvPattern pattern(TinyLayout());
  const KvPattern block(BlockLayout());
  for (int life = 0; life < 6; ++life) {
    SCOPED_TRACE("life " + std::to_string(life));
    Open(Options());
    for (int i = 0; i < 8; ++i) {
      const std::string name = "s" + std::to_string((life * 5 + i) % 11);
      if (i % 3 == 0) (void)kv().DropSession(name);
      Save(i % 2 == 0 ? pattern : block, name + (i % 2 == 0 ? "t" : "b"),
           ContextOf(life * 10 + i, 30 + 7 * i));
    }
    if (life % 2 == 0) Close();
    opened_.reset();
    ExpectClean();
  }
  Open(Options());
  const auto sessions = kv().ListSessions({});
  ASSERT_TRUE(sessions.ok()) << sessions.status();
  for (const SessionInfo& info : *sessions) ASSERT_TRUE(kv().DropSession(info.name).ok());
  const StoreStatus status = *kv().Status();
  EXPECT_EQ(status.chunk_count, 0u);
  EXPECT_EQ(status.disk.chunk_count, 0u);
  Close();
  Open(Options());
  EXPECT_EQ(kv().Status()->disk.used_bytes, 0u);
  EXPECT_EQ(kv().Status()->session_count, 0u);
}

TEST_F(DurabilityTest, TenantsKeepTheirKeysApart) {
  const KvPattern pattern(TinyLayout());
  Open(Options());
  auto other = opened_->store().ForTenant("other");
  ASSERT_TRUE(other.ok()) << other.status();
  const KvContext mine = ContextOf(1, 50, 1);
  const KvContext theirs = ContextOf(1, 50, 2);
  Save(pattern, "s", mine);
  ASSERT_TRUE(SaveAll(**other, pattern, {.session = "s", .context = &theirs}).ok());
  other->reset();
  Close();
  Open(Options());
  other = opened_->store().ForTenant("other");
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(Restore(pattern, "s", mine).token_count, 50u);
  const auto restored = RestoreAndCheck(**other, pattern, {.context = &theirs});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->token_count, 50u);
  other->reset();
}

TEST_F(DurabilityTest, ASecondStoreOnTheDirectoryIsRefused) {
  Open(Options());
  const auto second = Store::Open(Options());
  ASSERT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  EXPECT_TRUE(absl::StrContains(second.status().ToString(), Options().data_dir));
  opened_.reset();
  EXPECT_TRUE(Store::Open(Options()).ok());
}

TEST_F(DurabilityTest, ANewerFormatIsRefusedAndLeftAlone) {
  const KvPattern pattern(TinyLayout());
  Open(Options());
  Save(pattern, "s", ContextOf(1, 50));
  Close();
  const std::string path = Options().data_dir + "/FORMAT";
  std::string text;
  {
    std::ifstream in(path);
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  const size_t digit = text.find('1');
  ASSERT_NE(digit, std::string::npos) << text;
  std::string newer = text;
  newer[digit] = '9';
  std::ofstream(path) << newer;
  const auto refused = Store::Open(Options());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_TRUE(absl::StrContains(refused.status().ToString(), "9")) << refused.status();
  std::ofstream(path) << text;
  Open(Options());
  EXPECT_EQ(Restore(pattern, "s", ContextOf(1, 50)).token_count, 50u);
}

TEST_F(DurabilityTest, BadOptionsAreRefusedByName) {
  struct Case {
    const char* field;
    std::function<void(StoreOptions&)> change;
  };
  const Case cases[] = {
      {"host_bytes", [](StoreOptions& o) { o.host_bytes = 10; }},
      {"low_watermark", [](StoreOptions& o) { o.low_watermark = 0.99; }},
      {"high_watermark", [](StoreOptions& o) { o.high_watermark = 1.5; }},
      {"max_pinned_share", [](StoreOptions& o) { o.max_pinned_share = -1; }},
      {"io_depth", [](StoreOptions& o) { o.io_depth = 0; }},
      {"max_sessions", [](StoreOptions& o) { o.max_sessions = 0; }},
      {"default_ttl", [](StoreOptions& o) { o.default_ttl = absl::ZeroDuration(); }},
      {"policy", [](StoreOptions& o) { o.policy = "best"; }}};
  for (const Case& c : cases) {
    StoreOptions options = Options();
    c.change(options);
    const auto opened = Store::Open(options);
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_TRUE(absl::StrContains(opened.status().ToString(), c.field)) << opened.status();
  }
}

}  // namespace
}  // namespace turnkeep::testing
