// What survives the end of a store: by durability, after Close and without, with what is shown
// of sessions, and who may open a data directory.
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include "disk_tier/testing/memory_block_device.h"
#include "store/durability_fixture.h"

namespace turnkeep::testing {
namespace {

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

TEST_F(DurabilityTest, WhatWasDamagedInHostMemoryIsNotWritten) {
  StoreOptions options = Options();
  options.durability = Durability::kNone;
  Open(options);
  const KvPattern pattern(TinyLayout());
  const uint64_t chunk = TinyLayout().chunk_tokens;
  const KvContext context = ContextOf(1, 3 * chunk);
  ASSERT_EQ(Save(pattern, "s", context).token_count, context.size());
  {
    const auto ticket = kv().BeginRestore({.session = "s", .layout = pattern.fingerprint()});
    ASSERT_TRUE(ticket.ok() && (*ticket)->WaitLayer(0).ok()) << ticket.status();
    const_cast<std::byte&>((*ticket)->Page(1, 0)[5]) ^= std::byte{8};
  }
  Close();  // writes what is in host memory alone
  ExpectClean();
  Open(options);
  EXPECT_EQ(Restore(pattern, "s", context).token_count, chunk);
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
