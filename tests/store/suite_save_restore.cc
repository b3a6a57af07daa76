// KvStoreSuite: saving, appending, restoring.
#include <absl/strings/match.h>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

TEST_P(KvStoreSuite, EveryByteOfEveryLayoutComesBack) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    const uint64_t chunk = c.layout.chunk_tokens;
    for (const uint64_t count :
         {uint64_t{1}, uint64_t{3}, chunk - 1, chunk, chunk + 1, 3 * chunk + 7}) {
      SCOPED_TRACE(c.name + ", " + std::to_string(count) + " tokens");
      const std::string session = "s" + std::to_string(count);
      const KvContext context = ContextOf(count, count);
      const CommitResult saved = Save(pattern, session, context);
      EXPECT_EQ(saved.new_chunks, (count + chunk - 1) / chunk);
      EXPECT_EQ(Restore(pattern, session, context), count);
      EXPECT_EQ(RestoreWithoutPrompt(pattern, session, context), count);
      EXPECT_EQ(RestoreByTokens(pattern, context), count);
      if (HasFailure()) return;
      ASSERT_TRUE(kv().DropSession(session).ok());
      Forget(session);
    }
  }
}

TEST_P(KvStoreSuite, PagesCanBeReadWhereTheyLie) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    const KvContext context = ContextOf(1, 2 * c.layout.chunk_tokens + 5);
    Save(pattern, c.name, context);
    const auto restored =
        RestoreAndCheck(kv(), pattern, {.session = c.name, .context = &context, .by_page = true});
    ASSERT_TRUE(restored.ok()) << c.name << ": " << restored.status();
    EXPECT_EQ(restored->token_count, context.size()) << c.name;
  }
}

TEST_P(KvStoreSuite, AppendWritesOnlyTheNewTokens) {
  for (const LayoutCase& c : StandardLayouts()) {
    SCOPED_TRACE(c.name);
    const KvPattern pattern = Register(c);
    const uint64_t chunk = c.layout.chunk_tokens;
    KvContext context = ContextOf(1, 5 * chunk + 5);
    Save(pattern, c.name, context);
    context = Extended(context, 2, 2 * chunk);
    const CommitResult saved = Save(pattern, c.name, context);
    // The old tail is filled up: a chunk that is new as a whole.
    EXPECT_EQ(saved.new_chunks, 3u);
    uint64_t bytes = 0;
    for (const LayerSpec& layer : c.layout.layers) {
      bytes += 2 * LayerPageBytes(layer, static_cast<uint32_t>(chunk)) + LayerPageBytes(layer, 5);
    }
    EXPECT_EQ(saved.new_bytes, bytes);
    EXPECT_EQ(Restore(pattern, c.name, context), context.size());
  }
}

TEST_P(KvStoreSuite, ASessionMayGrowTokenByToken) {
  const KvPattern pattern = Register(TinyLayout());
  KvContext context;
  for (uint64_t i = 0; i < 40; ++i) {
    context = Extended(context, 100 + i, 1);
    Save(pattern, "s", context);
    ASSERT_EQ(Restore(pattern, "s", context), context.size());
  }
  // The tails it once had are gone.
  EXPECT_TRUE(Eventually([](const StoreStatus& s) { return s.host.chunk_count == 3; }));
}

TEST_P(KvStoreSuite, SavingTheSameAgainWritesNothing) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 37);
  const CommitResult first = Save(pattern, "s", context);
  const CommitResult second = Save(pattern, "s", context);
  EXPECT_EQ(second.new_chunks, 0u);
  EXPECT_EQ(second.new_bytes, 0u);
  EXPECT_GT(second.generation, first.generation);
  EXPECT_EQ(Restore(pattern, "s", context), 37u);
}

TEST_P(KvStoreSuite, OfTwoWritersTheLaterCommitFailsAndNothingIsLost) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext base = ContextOf(1, 40);
  const uint64_t generation = Save(pattern, "s", base).generation;
  const KvContext mine = Extended(base, 2, 20);
  const KvContext theirs = Extended(base, 3, 30);
  auto slow = BeginSaveOf(kv(), pattern,
                          {.session = "s", .expected_generation = generation, .context = &theirs});
  ASSERT_TRUE(slow.ok()) << slow.status();
  ASSERT_TRUE(FillTicket(**slow, pattern, theirs).ok());
  const CommitResult first = Save(pattern, "s", mine);

  const auto late = (*slow)->Commit(absl::Seconds(60));
  ASSERT_EQ(late.status().code(), absl::StatusCode::kFailedPrecondition) << late.status();
  const std::string message(late.status().message());
  EXPECT_TRUE(absl::StrContains(message, std::to_string(first.generation))) << message;
  EXPECT_TRUE(absl::StrContains(message, std::to_string(generation))) << message;
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", mine), mine.size());
  slow->reset();

  // The loser reads the new generation and tries again: nothing stands in its way.
  Save(pattern, "s", theirs);
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", theirs), theirs.size());
}

TEST_P(KvStoreSuite, AWriterWithAnOldGenerationIsRefused) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 40);
  const KvContext other = ContextOf(2, 40);
  const uint64_t generation = Save(pattern, "s", context).generation;
  for (const uint64_t wrong : {uint64_t{0}, generation + 1, UINT64_MAX}) {
    // At the begin: before its engine does any work.
    const auto begun = BeginSaveOf(
        kv(), pattern, {.session = "s", .expected_generation = wrong, .context = &other});
    EXPECT_EQ(begun.status().code(), absl::StatusCode::kFailedPrecondition)
        << wrong << ": " << begun.status();
  }
  const auto absent =
      BeginSaveOf(kv(), pattern, {.session = "t", .expected_generation = 3, .context = &other});
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kFailedPrecondition) << absent.status();
  EXPECT_EQ(RestoreWithoutPrompt(pattern, "s", context), context.size());
  EXPECT_EQ(Status().session_count, 1u);
}

// The same tokens, another model's KV: nothing of the session's own view may be kept.
TEST_P(KvStoreSuite, ASessionThatIsSavedAgainUnderAnotherLayoutKeepsNothing) {
  const KvPattern pattern = Register(TinyLayout());
  const KvPattern other = Register(TinyLayout("other"));
  const KvContext context = ContextOf(1, 40);
  const KvContext others = ContextOf(1, 40, /*salt=*/1);
  ASSERT_EQ(context.tokens(), others.tokens());
  Save(pattern, "s", context);
  const CommitResult saved = Save(other, "s", others);
  EXPECT_EQ(saved.new_chunks, 3u);
  EXPECT_EQ(RestoreWithoutPrompt(other, "s", others), others.size());
  EXPECT_EQ(Restore(other, "s", others), others.size());
}

TEST_P(KvStoreSuite, ATenFoldSystemPromptIsStoredOnce) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext system = ContextOf(1, 4096);
  Save(pattern, "s0", Extended(system, 100, 20));
  const StoreStatus one = Status();
  EXPECT_EQ(one.host.chunk_count, 65u);
  for (int i = 1; i < 10; ++i) {
    const CommitResult saved =
        Save(pattern, "s" + std::to_string(i), Extended(system, 100 + i, 20));
    EXPECT_EQ(saved.new_chunks, 1u);
  }
  const StoreStatus ten = Status();
  EXPECT_EQ(ten.host.chunk_count, 74u);
  const uint64_t tail_slot = GeometryOf(pattern.layout(), 20).slot_bytes;
  EXPECT_EQ(ten.host.used_bytes, one.host.used_bytes + 9 * tail_slot);

  for (int i = 0; i < 9; ++i) ASSERT_TRUE(kv().DropSession("s" + std::to_string(i)).ok());
  EXPECT_TRUE(Eventually([&](const StoreStatus& s) {
    return s.host.chunk_count == 65 && s.host.used_bytes == one.host.used_bytes;
  }));
  const KvContext last = Extended(system, 109, 20);
  EXPECT_EQ(Restore(pattern, "s9", last), last.size());
  ASSERT_TRUE(kv().DropSession("s9").ok());
  EXPECT_TRUE(Eventually([](const StoreStatus& s) {
    return s.host.chunk_count == 0 && s.host.used_bytes == 0 && s.chunk_count == 0;
  }));
}

TEST_P(KvStoreSuite, ARewindRestoresTheCommonPrefix) {
  for (const LayoutCase& c : StandardLayouts()) {
    const KvPattern pattern = Register(c);
    const uint64_t chunk = c.layout.chunk_tokens;
    const KvContext full = ContextOf(1, 3 * chunk + 9);
    Save(pattern, c.name, full);
    for (const uint64_t common :
         {uint64_t{0}, uint64_t{1}, chunk - 1, chunk, chunk + 5, 3 * chunk + 4, 3 * chunk + 9}) {
      SCOPED_TRACE(c.name + ", " + std::to_string(common) + " tokens in common");
      KvContext other = full;
      other.Resize(common);
      other = Extended(other, 77, 2 * chunk);
      // Hashes say nothing about what two different blocks have in common.
      const bool whole = common == full.size();
      const uint64_t expected = c.hashed ? common / chunk * chunk : common;
      if (c.hashed && whole) continue;
      EXPECT_EQ(Restore(pattern, c.name, other), expected);
      EXPECT_EQ(RestoreByTokens(pattern, other), expected);
    }
  }
}

TEST_P(KvStoreSuite, SavingARewoundContextReplacesTheSession) {
  for (const LayoutCase& c : StandardLayouts()) {
    SCOPED_TRACE(c.name);
    const KvPattern pattern = Register(c);
    const uint64_t chunk = c.layout.chunk_tokens;
    KvContext context = ContextOf(1, 4 * chunk);
    Save(pattern, c.name, context);
    context.Resize(chunk + 7);
    context = Extended(context, 5, chunk);
    Save(pattern, c.name, context);
    EXPECT_EQ(Restore(pattern, c.name, context), context.size());
    EXPECT_EQ(RestoreWithoutPrompt(pattern, c.name, context), context.size());
    context.Resize(3);
    Save(pattern, c.name, context);
    EXPECT_EQ(RestoreWithoutPrompt(pattern, c.name, context), 3u);
  }
}

TEST_P(KvStoreSuite, PromptsOfAFewTokensHit) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext three = ContextOf(1, 3);
  Save(pattern, "s", three);
  EXPECT_EQ(RestoreByTokens(pattern, three), 3u);
  EXPECT_EQ(RestoreByTokens(pattern, Extended(three, 2, 500)), 3u);
  KvContext two = three;
  two.Resize(2);
  EXPECT_EQ(RestoreByTokens(pattern, two), 2u);
}

TEST_P(KvStoreSuite, TheLongestStoredPrefixIsFoundByTokensAlone) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext base = ContextOf(1, 16 * 4);
  Save(pattern, "short", Extended(base, 2, 5));
  Save(pattern, "long", Extended(Extended(base, 2, 5), 3, 60));
  Save(pattern, "other", Extended(base, 9, 100));
  EXPECT_EQ(RestoreByTokens(pattern, Extended(Extended(base, 2, 5), 3, 70)), 64u + 5 + 60);
  EXPECT_EQ(RestoreByTokens(pattern, Extended(Extended(base, 2, 5), 4, 70)), 64u + 5);
  EXPECT_EQ(RestoreByTokens(pattern, Extended(base, 9, 99)), 64u + 99);
  EXPECT_EQ(RestoreByTokens(pattern, ContextOf(50, 200)), 0u);
}

TEST_P(KvStoreSuite, ARestoreEndsAtItsLimit) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  for (const uint64_t limit : {1u, 15u, 16u, 17u, 99u, 100u, 101u}) {
    for (const bool by_session : {true, false}) {
      const auto restored = RestoreAndCheck(
          kv(), pattern,
          {.session = by_session ? "s" : "", .context = &context, .max_tokens = limit});
      ASSERT_TRUE(restored.ok()) << restored.status();
      EXPECT_EQ(restored->token_count, std::min<uint64_t>(limit, 100)) << limit;
    }
  }
}

TEST_P(KvStoreSuite, ARestoreKnowsItsGenerationAndWhyItEnds) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 40);
  const CommitResult saved = Save(pattern, "s", context);
  const KvContext longer = Extended(context, 2, 10);
  auto restored = RestoreAndCheck(kv(), pattern, {.session = "s", .context = &longer});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->generation, saved.generation);
  EXPECT_NE(restored->miss_reason, "");
  restored = RestoreAndCheck(kv(), pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->miss_reason, "");
  restored = RestoreAndCheck(kv(), pattern, {.context = &context});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->generation, 0u);
  const KvContext unknown = ContextOf(7, 40);
  for (const bool give_prompt : {true, false}) {
    restored = RestoreAndCheck(
        kv(), pattern, {.session = "nobody", .context = &unknown, .give_prompt = give_prompt});
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_EQ(restored->token_count, 0u);
    EXPECT_NE(restored->miss_reason, "");
  }
}

TEST_P(KvStoreSuite, TheTokensOfAnUnknownSessionMayBelongToAnother) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 40);
  Save(pattern, "s", context);
  EXPECT_EQ(Restore(pattern, "nobody", Extended(context, 2, 10)), 40u);
}

TEST_P(KvStoreSuite, AnOpenRestoreOutlivesItsSession) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 200);
  Save(pattern, "s", context);
  auto ticket = kv().BeginRestore({.session = "s", .layout = pattern.fingerprint()});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(kv().DropSession("s").ok());
  for (int i = 0; i < 5; ++i) Save(pattern, "t" + std::to_string(i), ContextOf(10 + i, 300));
  const auto restored = CheckTicket(**ticket, pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->token_count, 200u);
}

TEST_P(KvStoreSuite, APageChangedAfterItWasFinishedIsAMiss) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 5 * 64);
  auto ticket = BeginSaveOf(kv(), pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(FillTicket(**ticket, pattern, context).ok());
  (*ticket)->Page(2, 1)[100] ^= std::byte{4};
  const auto committed = (*ticket)->Commit(absl::Seconds(60));
  ticket->reset();
  // Whether the commit or the restore notices is the store's choice.
  if (committed.ok()) {
    const auto restored = RestoreAndCheck(kv(), pattern, {.session = "s", .context = &context});
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_EQ(restored->token_count, 2 * 64u);
    EXPECT_LE(restored->data_losses, 1u);  // none if it was noticed on the way to disk
    EXPECT_EQ(Restore(pattern, "s", context), 2 * 64u);
    // What was lost can be saved again.
    const auto info = kv().StatSession("s");
    ASSERT_TRUE(info.ok()) << info.status();
    NoteGeneration(*info);
  }
  Save(pattern, "s", context);
  EXPECT_EQ(Restore(pattern, "s", context), context.size());
}

TEST_P(KvStoreSuite, ACommitThatTheDiskCannotTakeSaysSo) {
  Open({.disk_bytes = 32 * kKiB});  // less than a chunk
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 3);
  const CommitResult saved = Save(pattern, "s", context);
  EXPECT_FALSE(saved.durable);
  EXPECT_NE(saved.note, "");
  EXPECT_EQ(Restore(pattern, "s", context), context.size());
  Open({});
  Register(BlockLayout());
  const CommitResult without = Save(pattern, "s", context);
  EXPECT_TRUE(without.durable) << "nothing was asked for that could not be kept";
  EXPECT_EQ(without.note, "");
}

TEST_P(KvStoreSuite, ACommitNeedsEveryLayer) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 70);
  auto ticket = BeginSaveOf(kv(), pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  for (const uint32_t layer : {0u, 1u, 3u}) ASSERT_TRUE((*ticket)->FinishLayer(layer).ok());
  const auto committed = (*ticket)->Commit(absl::Seconds(60));
  EXPECT_EQ(committed.status().code(), absl::StatusCode::kFailedPrecondition) << committed.status();
  ticket->reset();
  EXPECT_EQ(Restore(pattern, "s", context), 0u);
}

}  // namespace
}  // namespace turnkeep::testing
