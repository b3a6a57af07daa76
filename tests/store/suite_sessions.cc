// KvStoreSuite: forking, truncating, renaming, dropping, pinning, expiring, listing.
#include <random>

#include <absl/strings/match.h>
#include <fmt/format.h>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

TEST_P(KvStoreSuite, AForkMovesNoBytesAndGoesItsOwnWay) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext base = ContextOf(1, 70);
  Save(pattern, "a", base);
  const StoreStatus before = Status();
  auto fork = kv().ForkSession({.source = "a", .target = "b"});
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->name, "b");
  EXPECT_EQ(fork->token_count, 70u);
  NoteGeneration(*fork);
  EXPECT_EQ(Status().host.used_bytes, before.host.used_bytes);
  EXPECT_EQ(Status().host.chunk_count, before.host.chunk_count);

  Save(pattern, "b", Extended(base, 2, 30));
  Save(pattern, "a", Extended(base, 3, 40));
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "b", Extended(base, 2, 30)), 100u);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "a", Extended(base, 3, 40)), 110u);
  ASSERT_TRUE(kv().DropSession("a").ok());
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "b", Extended(base, 2, 30)), 100u);
}

TEST_P(KvStoreSuite, AForkMayKeepAnyNumberOfLeadingTokens) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    const uint64_t chunk = c.layout.chunk_tokens;
    const KvContext base = ContextOf(1, 2 * chunk + 5);
    Save(pattern, c.name, base);
    for (const uint64_t keep : {uint64_t{1}, chunk - 1, chunk, chunk + 3, 2 * chunk + 5}) {
      SCOPED_TRACE(c.name + ", " + std::to_string(keep) + " tokens");
      const std::string target = c.name + std::to_string(keep);
      auto fork = kv().ForkSession({.source = c.name, .target = target, .token_count = keep});
      ASSERT_TRUE(fork.ok()) << fork.status();
      EXPECT_EQ(fork->token_count, keep);
      KvContext kept = base;
      kept.Resize(keep);
      EXPECT_EQ(RestoreWithoutPrompt(pattern, target, kept), keep);
      if (c.hashed) continue;
      EXPECT_EQ(Restore(pattern, target, kept), keep);
      NoteGeneration(*fork);
      const KvContext more = Extended(kept, 9, chunk);
      Save(pattern, target, more);
      EXPECT_EQ(RestoreWithoutPrompt(pattern, target, more), more.size());
    }
  }
}

TEST_P(KvStoreSuite, ForksAndRenamesThatCannotBeSaySo) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "a", ContextOf(1, 20));
  Save(pattern, "b", ContextOf(2, 20));
  EXPECT_TRUE(absl::IsAlreadyExists(kv().ForkSession({.source = "a", .target = "b"}).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(kv().ForkSession({.source = "a", .target = "a"}).status()));
  EXPECT_TRUE(absl::IsNotFound(kv().ForkSession({.source = "x", .target = "c"}).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(kv().RenameSession("a", "b").status()));
  EXPECT_TRUE(absl::IsNotFound(kv().RenameSession("x", "c").status()));
  EXPECT_TRUE(absl::IsNotFound(kv().DropSession("x")));
  EXPECT_TRUE(absl::IsNotFound(kv().PinSession("x").status()));
  EXPECT_TRUE(absl::IsNotFound(kv().UnpinSession("x").status()));
  EXPECT_TRUE(absl::IsNotFound(kv().SetSessionTtl("x", absl::Seconds(5)).status()));
  EXPECT_TRUE(absl::IsNotFound(kv().StatSession("x").status()));
  EXPECT_TRUE(absl::IsNotFound(kv().ShowSession("x").status()));
  EXPECT_TRUE(absl::IsNotFound(
      kv().TruncateSession({.session = "x", .drop_begin = 0, .drop_end = 1}).status()));
  EXPECT_EQ(Status().session_count, 2u);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "a", ContextOf(1, 20)), 20u);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "b", ContextOf(2, 20)), 20u);
}

// One truncation, then an append, checked by session and by session and tokens.
struct Cut {
  const char* name;
  double begin;  // as shares of the context
  double end;
};
constexpr Cut kCuts[] = {{"the oldest half", 0, 0.5},   {"the middle", 0.3, 0.6},
                         {"the first tokens", 0, 0.03}, {"the last tokens", 0.97, 1},
                         {"the younger half", 0.5, 1},  {"a few in the middle", 0.4, 0.41}};

TEST_P(KvStoreSuite, AnyRangeCanBeDroppedAndAppendedTo) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    const uint64_t count = 4 * c.layout.chunk_tokens + 9;
    const KvContext base = ContextOf(1, count);
    for (const Cut& cut : kCuts) {
      SCOPED_TRACE(c.name + ", " + cut.name);
      Forget("s");
      Save(pattern, "s", base);
      const StoreStatus before = Status();
      const auto begin = static_cast<uint64_t>(cut.begin * static_cast<double>(count));
      const auto end =
          std::max(begin + 1, static_cast<uint64_t>(cut.end * static_cast<double>(count)));
      const auto info =
          kv().TruncateSession({.session = "s", .drop_begin = begin, .drop_end = end});
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->token_count, count - (end - begin));
      EXPECT_LE(Status().host.used_bytes, before.host.used_bytes);
      KvContext context = base;
      context.Drop(begin, end);
      EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", context), context.size());
      if (!c.hashed) {
        EXPECT_EQ(Restore(pattern, "s", context), context.size());
        NoteGeneration(*info);
        context = Extended(context, 5, c.layout.chunk_tokens + 3);
        Save(pattern, "s", context);
        EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", context), context.size());
        EXPECT_EQ(Restore(pattern, "s", context), context.size());
      }
      ASSERT_TRUE(kv().DropSession("s").ok());
      if (HasFailure()) return;
    }
    EXPECT_TRUE(Eventually([](const StoreStatus& s) { return s.host.chunk_count == 0; }));
  }
}

TEST_P(KvStoreSuite, ASessionMayBeTruncatedOverAndOver) {
  const KvPattern pattern = Register(TinyLayout());
  const uint64_t seed = 20240611;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  for (int turn = 0; turn < 60; ++turn) {
    SCOPED_TRACE("turn " + std::to_string(turn));
    const uint64_t begin = random() % 3 == 0 ? 0 : random() % context.size();
    const uint64_t end = begin + 1 + random() % std::max<uint64_t>(1, context.size() / 2);
    const uint64_t capped = std::min(end, context.size());
    if (begin == 0 && capped == context.size()) continue;
    const auto info =
        kv().TruncateSession({.session = "s", .drop_begin = begin, .drop_end = capped});
    ASSERT_TRUE(info.ok()) << info.status();
    NoteGeneration(*info);
    context.Drop(begin, capped);
    ASSERT_EQ(RestoreWithoutPrompt(pattern, "s", context), context.size());
    context = Extended(context, 1000 + turn, 1 + random() % 60);
    Save(pattern, "s", context);
    ASSERT_EQ(Restore(pattern, "s", context), context.size());
    ASSERT_EQ(RestoreWithoutPrompt(pattern, "s", context), context.size());
  }
}

TEST_P(KvStoreSuite, ATruncatedContextNeverStandsInForTheFullOne) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext full = ContextOf(1, 64);
  Save(pattern, "full", full);
  Save(pattern, "cut", full);
  KvContext cut = full;
  cut.Drop(0, 32);
  const auto info = kv().TruncateSession({.session = "cut", .drop_begin = 0, .drop_end = 32});
  ASSERT_TRUE(info.ok()) << info.status();
  NoteGeneration(*info);
  cut = Extended(cut, 2, 64);
  Save(pattern, "cut", cut);

  // The same token ids as `cut` shows, never truncated: other KV, which nobody has saved.
  KvContext fresh;
  fresh.Append(cut.tokens());
  ASSERT_EQ(fresh.tokens(), cut.tokens());
  EXPECT_EQ(RestoreByTokens(pattern, fresh), 0u);
  // The same tokens after the full context: other KV as well.
  const KvContext extended = Extended(full, 2, 64);
  EXPECT_EQ(RestoreByTokens(pattern, extended), 64u);
  Save(pattern, "full", extended);
  Save(pattern, "fresh", fresh);
  EXPECT_EQ(RestoreByTokens(pattern, extended), extended.size());
  EXPECT_EQ(RestoreByTokens(pattern, fresh), fresh.size());
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "cut", cut), cut.size());
  EXPECT_EQ(Restore(pattern, "cut", cut), cut.size());
}

// The same where the truncated view is rewound into the middle of a chunk: what is saved then
// begins with tokens of a slice, whose KV knows of what was dropped.
TEST_P(KvStoreSuite, ARewindInsideATruncatedViewNeverStandsInForTheFullContext) {
  struct Case {
    uint64_t drop_begin, drop_end;
    uint64_t keep;   // tokens of the truncated view that stay
    uint64_t alike;  // leading tokens that have the KV of the full context
  };
  const KvPattern pattern = Register(TinyLayout());
  uint64_t seed = 100;
  for (const Case& c : {Case{16, 24, 20, 16}, Case{0, 16, 10, 0}, Case{16, 32, 20, 16}}) {
    for (const bool fresh_first : {false, true}) {
      SCOPED_TRACE(std::to_string(c.drop_begin) + (fresh_first ? " fresh first" : ""));
      const std::string name = "cut" + std::to_string(++seed);
      KvContext cut = ContextOf(seed, 64);
      Save(pattern, name, cut);
      const auto info = kv().TruncateSession(
          {.session = name, .drop_begin = c.drop_begin, .drop_end = c.drop_end});
      ASSERT_TRUE(info.ok()) << info.status();
      NoteGeneration(*info);
      cut.Drop(c.drop_begin, c.drop_end);
      cut.Resize(c.keep);
      cut = Extended(cut, 7, 40);
      KvContext fresh;
      fresh.Append(cut.tokens());
      if (fresh_first) Save(pattern, name + "-fresh", fresh);
      Save(pattern, name, cut);
      EXPECT_EQ(RestoreByTokens(pattern, fresh), fresh_first ? fresh.size() : c.alike);
      EXPECT_EQ(RestoreWithoutPrompt(pattern, name, cut), cut.size());
    }
  }
}

TEST_P(KvStoreSuite, TruncationChecksTheGenerationAndTheRange) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  const uint64_t generation = Save(pattern, "s", context).generation;
  const auto old = kv().TruncateSession(
      {.session = "s", .expected_generation = generation + 1, .drop_begin = 0, .drop_end = 10});
  EXPECT_EQ(old.status().code(), absl::StatusCode::kFailedPrecondition) << old.status();
  struct Case {
    uint64_t begin, end;
  };
  for (const Case& c : {Case{20, 10}, Case{0, 51}, Case{51, 60}, Case{0, UINT64_MAX}}) {
    const auto bad =
        kv().TruncateSession({.session = "s", .drop_begin = c.begin, .drop_end = c.end});
    EXPECT_EQ(bad.status().code(), absl::StatusCode::kInvalidArgument)
        << c.begin << ".." << c.end << ": " << bad.status();
    EXPECT_TRUE(absl::StrContains(bad.status().ToString(), "drop_")) << bad.status();
  }
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", context), 50u);
  const auto good = kv().TruncateSession(
      {.session = "s", .expected_generation = generation, .drop_begin = 10, .drop_end = 20});
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_GT(good->generation, generation);
  // A writer that has not seen the truncation is refused.
  const auto late = SaveAll(
      kv(), pattern, {.session = "s", .expected_generation = generation, .context = &context});
  EXPECT_EQ(late.status().code(), absl::StatusCode::kFailedPrecondition) << late.status();
}

TEST_P(KvStoreSuite, ARenamedSessionKeepsItsContent) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  Save(pattern, "a", context);
  const auto renamed = kv().RenameSession("a", "b");
  ASSERT_TRUE(renamed.ok()) << renamed.status();
  EXPECT_EQ(renamed->name, "b");
  EXPECT_TRUE(absl::IsNotFound(kv().StatSession("a").status()));
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "a", context), 0u);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "b", context), 50u);
  NoteGeneration(*renamed);
  Save(pattern, "b", Extended(context, 2, 9));
  Forget("a");
  Save(pattern, "a", ContextOf(3, 4));
  EXPECT_EQ(Status().session_count, 2u);
}

TEST_P(KvStoreSuite, ADroppedSessionIsAMissAndItsNameIsFree) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  Save(pattern, "s", context);
  ASSERT_TRUE(kv().DropSession("s").ok());
  EXPECT_TRUE(absl::IsNotFound(kv().DropSession("s")));
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", context), 0u);
  EXPECT_EQ(RestoreByTokens(pattern, context), 0u);
  EXPECT_TRUE(Eventually([](const StoreStatus& s) {
    return s.session_count == 0 && s.chunk_count == 0 && s.host.used_bytes == 0;
  }));
  Forget("s");
  Save(pattern, "s", ContextOf(2, 20));
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", ContextOf(2, 20)), 20u);
}

TEST_P(KvStoreSuite, ASaveWhoseSessionIsDroppedUnderItDoesNotBringItBack) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  const uint64_t generation = Save(pattern, "s", context).generation;
  const KvContext longer = Extended(context, 2, 50);
  auto ticket = BeginSaveOf(
      kv(), pattern, {.session = "s", .expected_generation = generation, .context = &longer});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(FillTicket(**ticket, pattern, longer).ok());
  ASSERT_TRUE(kv().DropSession("s").ok());
  const auto committed = (*ticket)->Commit(absl::Seconds(60));
  EXPECT_EQ(committed.status().code(), absl::StatusCode::kFailedPrecondition) << committed.status();
  ticket->reset();
  EXPECT_TRUE(absl::IsNotFound(kv().StatSession("s").status()));
  EXPECT_TRUE(Eventually([](const StoreStatus& s) { return s.host.used_bytes == 0; }));
}

TEST_P(KvStoreSuite, PinsAreCountedAndLimited) {
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  const uint64_t chunk_bytes = GeometryOf(pattern.layout(), 64).slot_bytes;
  // Two sessions of 18 MiB: together more than half of the tier.
  const uint64_t tokens = 18 * kMiB / chunk_bytes * 64;
  Save(pattern, "a", ContextOf(1, tokens));
  Save(pattern, "b", ContextOf(2, tokens));
  const auto pinned = kv().PinSession("a");
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  EXPECT_TRUE(pinned->pinned);
  EXPECT_EQ(Status().host.pinned_bytes, tokens / 64 * chunk_bytes);
  ASSERT_TRUE(kv().PinSession("a").ok());  // idempotent
  EXPECT_EQ(Status().host.pinned_bytes, tokens / 64 * chunk_bytes);
  const auto second = kv().PinSession("b");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kResourceExhausted) << second.status();
  const auto unpinned = kv().UnpinSession("a");
  ASSERT_TRUE(unpinned.ok()) << unpinned.status();
  EXPECT_FALSE(unpinned->pinned);
  EXPECT_EQ(Status().host.pinned_bytes, 0u);
  EXPECT_TRUE(kv().PinSession("b").ok());
}

TEST_P(KvStoreSuite, APinnedSessionStaysWhileOthersGo) {
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  const KvContext pinned = ContextOf(1, 64 * 100);
  Save(pattern, "pinned", pinned);
  ASSERT_TRUE(kv().PinSession("pinned").ok());
  for (int i = 0; i < 12; ++i) {
    Save(pattern, "s" + std::to_string(i), ContextOf(10 + i, 64 * 100));
    EXPECT_LE(Status().host.used_bytes, 64 * kMiB);
  }
  EXPECT_EQ(Restore(pattern, "s0", ContextOf(10, 64 * 100)), 0u) << "nothing was evicted";
  EXPECT_EQ(Restore(pattern, "pinned", pinned), pinned.size());
  // A pin holds what is saved later as well.
  const auto info = kv().StatSession("pinned");
  ASSERT_TRUE(info.ok()) << info.status();
  NoteGeneration(*info);
  EXPECT_TRUE(info->pinned);
  const KvContext longer = Extended(pinned, 2, 640);
  Save(pattern, "pinned", longer);
  for (int i = 0; i < 12; ++i) {
    Save(pattern, "t" + std::to_string(i), ContextOf(50 + i, 64 * 100));
  }
  EXPECT_EQ(Restore(pattern, "pinned", longer), longer.size());
}

TEST_P(KvStoreSuite, ASessionExpiresAfterItsLastUse) {
  if (store().clock() == nullptr) GTEST_SKIP() << "this harness cannot set the store's clock";
  ManualClock& clock = *store().clock();
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 20);
  Save(pattern, "s", context);
  Save(pattern, "keeps", ContextOf(2, 20));
  const auto info = kv().SetSessionTtl("s", absl::Seconds(100));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->expires_unix_s, clock.UnixSeconds() + 100);
  clock.AdvanceSeconds(60);
  EXPECT_EQ(Restore(pattern, "s", context), 20u);  // a use
  clock.AdvanceSeconds(60);
  EXPECT_EQ(Restore(pattern, "s", context), 20u);
  clock.AdvanceSeconds(101);
  EXPECT_EQ(Restore(pattern, "s", context), 0u);
  EXPECT_TRUE(absl::IsNotFound(kv().StatSession("s").status()));
  EXPECT_TRUE(Eventually(
      [](const StoreStatus& s) { return s.session_count == 1 && s.host.chunk_count == 2; }));
  EXPECT_TRUE(kv().StatSession("keeps").ok());
}

TEST_P(KvStoreSuite, ATimeToLiveCanBeSetWithTheSaveAndTakenBack) {
  if (store().clock() == nullptr) GTEST_SKIP() << "this harness cannot set the store's clock";
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 20);
  const auto saved =
      SaveAll(kv(), pattern, {.session = "s", .context = &context, .ttl = absl::Seconds(10)});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_NE(kv().StatSession("s")->expires_unix_s, 0);
  const auto forever = kv().SetSessionTtl("s", absl::InfiniteDuration());
  ASSERT_TRUE(forever.ok()) << forever.status();
  EXPECT_EQ(forever->expires_unix_s, 0);
  store().clock()->AdvanceSeconds(1000);
  EXPECT_EQ(Restore(pattern, "s", context), 20u);
}

TEST_P(KvStoreSuite, SessionsAreListedInPagesByPrefix) {
  const KvPattern pattern = Register(TinyLayout());
  std::vector<std::string> names;
  for (int i = 0; i < 25; ++i) {
    const std::string name = fmt::format("{}/{:02}", i % 2 == 0 ? "even" : "odd", i);
    Save(pattern, name, ContextOf(i, 5));
    if (i % 2 == 0) names.push_back(name);
  }
  std::vector<std::string> seen;
  std::string after;
  while (true) {
    const auto page = kv().ListSessions({.name_prefix = "even/", .after = after, .limit = 4});
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(page->size(), 4u);
    if (page->empty()) break;
    for (const SessionInfo& info : *page) seen.push_back(info.name);
    after = page->back().name;
  }
  EXPECT_EQ(seen, names);
  const auto all = kv().ListSessions({});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), 25u);
}

}  // namespace
}  // namespace turnkeep::testing
