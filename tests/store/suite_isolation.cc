// KvStoreSuite: what must never meet, what must not leak, and what must be refused.
#include <limits>

#include <absl/strings/match.h>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

TEST_P(KvStoreSuite, LayoutsThatDifferInOneFieldNeverMeet) {
  const KvLayout base = EveryKindLayout();
  const KvPattern pattern = Register(base);
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  for (const FieldChange& change : OneFieldChanges(base)) {
    SCOPED_TRACE(change.field);
    const KvPattern other = Register(change.layout);
    EXPECT_EQ(RestoreByTokens(other, context), 0u);
    EXPECT_EQ(Restore(other, "s", context), 0u);
    EXPECT_EQ(RestoreWithoutPrompt(other, "s", context), 0u);
  }
  EXPECT_EQ(RestoreByTokens(pattern, context), context.size());
}

TEST_P(KvStoreSuite, LayoutsAreKeptWhole) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    Register(c);  // again
    const auto layout = kv().GetLayout(pattern.fingerprint());
    ASSERT_TRUE(layout.ok()) << c.name << ": " << layout.status();
    EXPECT_EQ(*layout, c.layout) << c.name;
  }
  Fingerprint unknown;
  unknown.bytes[0] = 1;
  EXPECT_TRUE(absl::IsNotFound(kv().GetLayout(unknown).status()))
      << kv().GetLayout(unknown).status();
}

TEST_P(KvStoreSuite, TenantsNeverSeeEachOther) {
  const auto other = store().Tenant("other");
  if (other == nullptr) GTEST_SKIP() << "this harness speaks for one tenant";
  const KvPattern pattern = Register(TinyLayout());
  ASSERT_TRUE(other->RegisterLayout(pattern.layout()).ok());
  const KvContext mine = ContextOf(1, 50, /*salt=*/1);
  const KvContext theirs = ContextOf(1, 50, /*salt=*/2);
  ASSERT_EQ(mine.tokens(), theirs.tokens());
  Save(pattern, "s", mine);
  // Neither by name nor by tokens, nor through sharing.
  for (const bool by_name : {true, false}) {
    const auto miss =
        RestoreAndCheck(*other, pattern, {.session = by_name ? "s" : "", .context = &theirs});
    ASSERT_TRUE(miss.ok()) << miss.status();
    EXPECT_EQ(miss->token_count, 0u);
  }
  EXPECT_TRUE(absl::IsNotFound(other->StatSession("s").status()));
  EXPECT_TRUE(absl::IsNotFound(other->DropSession("s")));
  EXPECT_EQ(other->ListSessions({})->size(), 0u);
  EXPECT_EQ(other->Tree({})->size(), 0u);
  const auto saved = SaveAll(*other, pattern, {.session = "s", .context = &theirs});
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(saved->new_chunks, 4u);
  const auto restored = RestoreAndCheck(*other, pattern, {.session = "s", .context = &theirs});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->token_count, 50u);
  EXPECT_EQ(Restore(pattern, "s", mine), 50u);
  EXPECT_EQ(RestoreByTokens(pattern, mine), 50u);
  ASSERT_TRUE(other->DropSession("s").ok());
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", mine), 50u);
}

TEST_P(KvStoreSuite, TenantsReachEachOthersChunksByNoOtherCallEither) {
  const auto other = store().Tenant("other");
  if (other == nullptr) GTEST_SKIP() << "this harness speaks for one tenant";
  for (const bool hashed : {false, true}) {
    SCOPED_TRACE(hashed ? "block hashes" : "tokens");
    const KvPattern pattern = Register(TinyLayout(), hashed);
    ASSERT_TRUE(other->RegisterLayout(pattern.layout()).ok());
    const KvContext context = ContextOf(1, 64);
    const std::string session = hashed ? "hashed" : "s";
    Save(pattern, session, context);
    const auto hashes = context.BlockHashes(TinyLayout().chunk_tokens);
    HintTarget prefix{.layout = pattern.fingerprint()};
    if (hashed) {
      prefix.block_hashes = hashes;
      prefix.hashed_token_count = 64;
    } else {
      prefix.tokens.assign(context.tokens().begin(), context.tokens().end());
    }
    for (const HintTarget& target : {HintTarget{.session = session}, prefix}) {
      for (const HintAction action : {HintAction::kShare, HintAction::kPrefetch,
                                      HintAction::kDemote, HintAction::kDropSoon}) {
        const HintReply reply = other->Hint({.items = {{.action = action, .target = target}}});
        EXPECT_EQ(reply.items.at(0).outcome, HintOutcome::kMissing) << NameOf(action);
      }
    }
    EXPECT_TRUE(absl::IsNotFound(other->ShowSession(session).status()));
    EXPECT_TRUE(absl::IsNotFound(other->PinSession(session).status()));
    EXPECT_TRUE(absl::IsNotFound(other->ForkSession({.source = session, .target = "t"}).status()));
    const auto explained = other->Explain({.session = session});
    EXPECT_TRUE(!explained.ok() || explained->restorable_tokens == 0);
    // As chunks that its engine has: those of another tenant are none of its sessions'.
    const auto shown = kv().ShowSession(session);
    ASSERT_TRUE(shown.ok()) << shown.status();
    std::vector<ChunkId> ids;
    for (const SessionSpan& span : shown->spans) ids.push_back(span.chunk);
    ASSERT_FALSE(ids.empty());
    const auto held = RestoreAndCheck(*other, pattern, {.context = &context, .held_chunks = ids});
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_EQ(held->token_count, 0u);
    EXPECT_EQ(Restore(pattern, session, context), 64u);
  }
}

TEST_P(KvStoreSuite, HashedAndTokenPromptsDoNotMeet) {
  KvPattern by_tokens = Register(TinyLayout());
  KvPattern by_hash = Register(TinyLayout(), /*hashed=*/true);
  const KvContext context = ContextOf(1, 50);
  Save(by_tokens, "tokens", context);
  EXPECT_EQ(RestoreByTokens(by_hash, context), 0u);
  Save(by_hash, "hashes", context);
  EXPECT_EQ(RestoreByTokens(by_hash, context), 50u);
  EXPECT_EQ(RestoreByTokens(by_tokens, context), 50u);
}

TEST_P(KvStoreSuite, AbandonedTicketsGiveEverythingBack) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext base = ContextOf(1, 64 * 8 + 3);
  Save(pattern, "s", base);
  const StoreStatus before = Status();
  const KvContext longer = Extended(base, 2, 64 * 20);
  std::vector<std::unique_ptr<SaveTicket>> saves;
  std::vector<std::unique_ptr<RestoreTicket>> restores;
  for (int i = 0; i < 20; ++i) {
    auto save =
        BeginSaveOf(kv(), pattern, {.session = "n" + std::to_string(i), .context = &longer});
    ASSERT_TRUE(save.ok()) << save.status();
    if (i % 3 == 1) {
      ASSERT_TRUE((*save)->FinishLayer(0).ok());
    }
    if (i % 3 == 2) {
      ASSERT_TRUE(FillTicket(**save, pattern, longer).ok());
    }
    saves.push_back(*std::move(save));
    auto restore = kv().BeginRestore({.session = "s", .layout = pattern.fingerprint()});
    ASSERT_TRUE(restore.ok()) << restore.status();
    if (i % 2 == 1) {
      ASSERT_TRUE((*restore)->WaitLayer(1).ok());
    }
    restores.push_back(*std::move(restore));
  }
  EXPECT_EQ(Status().open_tickets, 40u);
  EXPECT_GT(Status().host.used_bytes, before.host.used_bytes);
  // Nothing of it is to be seen.
  EXPECT_EQ(RestoreByTokens(pattern, longer), base.size());
  saves.clear();
  restores.clear();
  EXPECT_TRUE(Eventually([&](const StoreStatus& s) {
    return s.open_tickets == 0 && s.host.used_bytes == before.host.used_bytes &&
           s.chunk_count == before.chunk_count && s.session_count == 1;
  }));
  EXPECT_EQ(Restore(pattern, "s", base), base.size());
}

TEST_P(KvStoreSuite, LittleRoomMeansFewerTokensAndNeverMoreThanTheCap) {
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  const uint64_t chunk_bytes = GeometryOf(pattern.layout(), 64).slot_bytes;
  const KvContext context = ContextOf(1, 96 * kMiB / chunk_bytes * 64);
  auto ticket = BeginSaveOf(
      kv(), pattern, {.session = "s", .context = &context, .space_deadline = absl::ZeroDuration()});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  const uint64_t accepted = (*ticket)->accepted_tokens();
  EXPECT_GT(accepted, 0u);
  EXPECT_LT(accepted, context.size());
  EXPECT_LE(Status().host.reserved_bytes, 64 * kMiB);
  ASSERT_TRUE(FillTicket(**ticket, pattern, context).ok());
  const auto committed = (*ticket)->Commit(absl::Seconds(60));
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->token_count, accepted);
  ticket->reset();
  const auto info = kv().StatSession("s");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->token_count, accepted);
  KvContext kept = context;
  kept.Resize(accepted);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", kept), info->restorable_tokens);
}

// ---- bad input ---------------------------------------------------------------------

// The status is InvalidArgument and its message holds every one of `parts`.
void ExpectInvalid(const absl::Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& part : parts) {
    EXPECT_TRUE(absl::StrContains(status.ToString(), part)) << part << " is not in " << status;
  }
}

TEST_P(KvStoreSuite, BadNamesAreRefusedByFieldAndValue) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 20);
  Save(pattern, "s", context);
  struct Case {
    std::string name;
    std::string shown;  // in the message
  };
  const Case cases[] = {{std::string("a\0b", 3), "a\\x00b"},
                        {"line\nbreak", "line\\x0a"},
                        {std::string(kMaxSessionNameBytes + 1, 'x'), "xxxxxxxx"},
                        {"\xff\xfe", "\\xff\\xfe"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(Quoted(c.name));
    const auto begin = kv().BeginSave({.session = c.name,
                                       .layout = pattern.fingerprint(),
                                       .prompt = {.tokens = context.tokens()}});
    ExpectInvalid(begin.status(), {"session", c.shown});
    ExpectInvalid(kv().ForkSession({.source = "s", .target = c.name}).status(),
                  {"target", c.shown});
    ExpectInvalid(kv().RenameSession("s", c.name).status(), {c.shown});
  }
  const auto empty =
      kv().BeginSave({.layout = pattern.fingerprint(), .prompt = {.tokens = context.tokens()}});
  ExpectInvalid(empty.status(), {"session"});
  ExpectInvalid(kv().ForkSession({.source = "s", .target = ""}).status(), {"target"});
  EXPECT_EQ(Status().session_count, 1u);
  EXPECT_EQ(Restore(pattern, "s", context), 20u);
}

TEST_P(KvStoreSuite, BadSavesAndRestoresAreRefusedByFieldAndValue) {
  const KvPattern pattern = Register(TinyLayout());
  const std::vector<uint32_t> tokens = MakeTokens(1, 20);
  const std::vector<BlockHash> hashes = {BlockHash("abc"), BlockHash("def")};
  const std::vector<BlockHash> long_hash = {BlockHash(kMaxBlockHashBytes + 1, 'h')};
  const std::vector<BlockHash> empty_hash = {BlockHash()};
  Fingerprint unknown;
  unknown.bytes[0] = 0xAB;

  ExpectInvalid(kv().BeginSave({.session = "s", .layout = pattern.fingerprint()}).status(),
                {"prompt"});
  ExpectInvalid(
      kv().BeginSave({.session = "s", .layout = unknown, .prompt = {.tokens = tokens}}).status(),
      {"layout", unknown.ShortHex()});
  ExpectInvalid(kv().BeginRestore({.session = "s", .layout = unknown}).status(),
                {"layout", unknown.ShortHex()});
  ExpectInvalid(kv().BeginRestore({.layout = pattern.fingerprint()}).status(), {"session"});
  const auto hashed = [&](std::span<const BlockHash> list, uint64_t count) {
    return kv()
        .BeginSave({.session = "s",
                    .layout = pattern.fingerprint(),
                    .prompt = {.block_hashes = list, .hashed_token_count = count}})
        .status();
  };
  ExpectInvalid(hashed(hashes, 0), {"prompt", "0"});
  ExpectInvalid(hashed(hashes, 16), {"prompt", "16"});
  ExpectInvalid(hashed(hashes, 33), {"prompt", "33"});
  ExpectInvalid(hashed(hashes, std::numeric_limits<uint64_t>::max()),
                {"prompt", "18446744073709551615"});
  ExpectInvalid(hashed(long_hash, 16), {"block_hashes[0]"});
  ExpectInvalid(hashed(empty_hash, 16), {"block_hashes[0]"});
  ExpectInvalid(
      kv().BeginSave(
              {.session = "s",
               .layout = pattern.fingerprint(),
               .prompt = {.tokens = tokens, .block_hashes = hashes, .hashed_token_count = 20}})
          .status(),
      {"prompt"});
  EXPECT_EQ(Status().session_count, 0u);
  EXPECT_EQ(Status().open_tickets, 0u);
}

TEST_P(KvStoreSuite, HugeNumbersAreRefusedOrClamped) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 20);
  Save(pattern, "s", context);
  constexpr auto kHuge = std::numeric_limits<uint64_t>::max();
  auto longest =
      RestoreAndCheck(kv(), pattern, {.session = "s", .context = &context, .max_tokens = kHuge});
  ASSERT_TRUE(longest.ok()) << longest.status();
  EXPECT_EQ(longest->token_count, 20u);
  EXPECT_TRUE(kv().ListSessions({.limit = std::numeric_limits<uint32_t>::max()}).ok());
  EXPECT_TRUE(kv().Tree({.max_nodes = std::numeric_limits<uint32_t>::max()}).ok());
  const auto fork = kv().ForkSession({.source = "s", .target = "t", .token_count = kHuge});
  ExpectInvalid(fork.status(), {"token_count"});
  for (const int64_t offset :
       {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    const auto save = kv().BeginSave({.session = "n",
                                      .layout = pattern.fingerprint(),
                                      .prompt = {.tokens = context.tokens()},
                                      .position_offset = offset});
    ExpectInvalid(save.status(), {"position_offset"});
  }
  for (const absl::Duration ttl :
       {absl::Seconds(-1), -absl::InfiniteDuration(), absl::ZeroDuration()}) {
    ExpectInvalid(kv().SetSessionTtl("s", ttl).status(), {"ttl"});
  }
  EXPECT_EQ(Restore(pattern, "s", context), 20u);
}

TEST_P(KvStoreSuite, BadLayoutsAreRefusedByFieldAndValue) {
  KvLayout layout = TinyLayout();
  layout.chunk_tokens = 7;
  ExpectInvalid(kv().RegisterLayout(layout).status(), {"chunk_tokens", "7"});
  layout = TinyLayout();
  layout.layers[1].kv_heads = 0;
  ExpectInvalid(kv().RegisterLayout(layout).status(), {"layers[1].kv_heads", "0"});
  layout = TinyLayout();
  layout.model.clear();
  ExpectInvalid(kv().RegisterLayout(layout).status(), {"model"});
  layout = TinyLayout();
  layout.layers.clear();
  ExpectInvalid(kv().RegisterLayout(layout).status(), {"layers"});
}

}  // namespace
}  // namespace turnkeep::testing
