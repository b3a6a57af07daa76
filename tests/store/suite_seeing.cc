// KvStoreSuite: nothing is hidden. stat, show, explain, tree, verify, status.
#include <numeric>

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

TEST_P(KvStoreSuite, StatTellsWhatASessionHoldsAndShares) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext context = ContextOf(1, 64 * 4 + 10);
  const CommitResult saved = Save(pattern, "s", context);
  const auto info = kv().StatSession("s");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->name, "s");
  EXPECT_EQ(info->generation, saved.generation);
  EXPECT_EQ(info->layout, pattern.fingerprint());
  EXPECT_EQ(info->model, pattern.layout().model);
  EXPECT_EQ(info->token_count, context.size());
  EXPECT_EQ(info->restorable_tokens, context.size());
  EXPECT_EQ(info->chunk_count, 5u);
  EXPECT_EQ(info->kv_bytes, saved.new_bytes);
  EXPECT_EQ(info->host_bytes, 4 * GeometryOf(pattern.layout(), 64).slot_bytes +
                                  GeometryOf(pattern.layout(), 10).slot_bytes);
  EXPECT_EQ(info->shared_chunks, 0u);
  EXPECT_FALSE(info->pinned);
  EXPECT_FALSE(info->truncated);
  EXPECT_EQ(info->expires_unix_s, 0);
  Save(pattern, "t", Extended(ContextOf(1, 64 * 2), 9, 5));
  EXPECT_EQ(kv().StatSession("s")->shared_chunks, 2u);
  ASSERT_TRUE(kv().TruncateSession({.session = "s", .drop_begin = 3, .drop_end = 70}).ok());
  EXPECT_TRUE(kv().StatSession("s")->truncated);
}

TEST_P(KvStoreSuite, ShowListsEverySpan) {
  const KvPattern pattern = Register(TinyLayout());
  KvContext context = ContextOf(1, 100);
  Save(pattern, "s", context);
  ASSERT_TRUE(kv().TruncateSession({.session = "s", .drop_begin = 5, .drop_end = 50}).ok());
  context.Drop(5, 50);
  ASSERT_TRUE(kv().ForkSession({.source = "s", .target = "t"}).ok());
  const auto detail = kv().ShowSession("s");
  ASSERT_TRUE(detail.ok()) << detail.status();
  EXPECT_EQ(detail->info.token_count, context.size());
  EXPECT_FALSE(detail->root.IsZero());
  uint64_t at = 0;
  for (const SessionSpan& span : detail->spans) {
    EXPECT_EQ(span.token_begin, at);
    EXPECT_EQ(span.stored_position, context.positions()[at]);
    EXPECT_LE(span.first_in_chunk + span.token_count, span.chunk_token_count);
    EXPECT_TRUE(span.in_host);
    EXPECT_EQ(span.session_count, 2u);
    EXPECT_EQ(span.slot_bytes, GeometryOf(pattern.layout(), span.chunk_token_count).slot_bytes);
    EXPECT_EQ(span.missing_reason, "");
    EXPECT_FALSE(span.chunk.IsZero());
    at += span.token_count;
  }
  EXPECT_EQ(at, context.size());
}

// All reasons and notes of an explanation in one text.
std::string TextOf(const Explanation& explanation) {
  std::string text;
  for (const ExplainPart& part : explanation.parts) text += part.reason + "\n";
  for (const std::string& note : explanation.notes) text += note + "\n";
  return text;
}

void ExpectParts(const Explanation& explanation, uint64_t token_count) {
  EXPECT_EQ(explanation.token_count, token_count);
  uint64_t at = 0;
  for (const ExplainPart& part : explanation.parts) {
    EXPECT_EQ(part.token_begin, at);
    EXPECT_GT(part.token_count, 0u);
    if (part.tier == Tier::kNone) {
      EXPECT_NE(part.reason, "");
    }
    at += part.token_count;
  }
  EXPECT_EQ(at, token_count);
}

TEST_P(KvStoreSuite, ExplainTellsHitsFromWhatWasNeverSaved) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  Save(pattern, "s", context);
  auto hit = kv().Explain({.session = "s"});
  ASSERT_TRUE(hit.ok()) << hit.status();
  ExpectParts(*hit, 50);
  EXPECT_EQ(hit->restorable_tokens, 50u);
  EXPECT_GT(hit->host_bytes, 0u);
  const KvContext longer = Extended(context, 2, 30);
  auto partial =
      kv().Explain({.prompt = {.tokens = longer.tokens()}, .layout = pattern.fingerprint()});
  ASSERT_TRUE(partial.ok()) << partial.status();
  ExpectParts(*partial, 80);
  EXPECT_EQ(partial->restorable_tokens, 50u);
  EXPECT_TRUE(absl::StrContains(TextOf(*partial), "never saved")) << TextOf(*partial);
}

TEST_P(KvStoreSuite, ExplainNamesTheLayoutFieldThatDiffers) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext context = ContextOf(1, 50);
  Save(pattern, "s", context);
  KvLayout other = TinyLayout();
  other.weights_revision = "r2";
  const KvPattern other_pattern = Register(other);
  const auto miss =
      kv().Explain({.prompt = {.tokens = context.tokens()}, .layout = other_pattern.fingerprint()});
  ASSERT_TRUE(miss.ok()) << miss.status();
  ExpectParts(*miss, 50);
  EXPECT_EQ(miss->restorable_tokens, 0u);
  EXPECT_TRUE(absl::StrContains(TextOf(*miss), "weights_revision")) << TextOf(*miss);
}

TEST_P(KvStoreSuite, ExplainRemembersADroppedSession) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 50));
  ASSERT_TRUE(kv().DropSession("s").ok());
  const auto gone = kv().Explain({.session = "s"});
  if (gone.ok()) {
    EXPECT_TRUE(absl::StrContains(TextOf(*gone), "dropped")) << TextOf(*gone);
  } else {
    EXPECT_TRUE(absl::IsNotFound(gone.status())) << gone.status();
    EXPECT_TRUE(absl::StrContains(gone.status().ToString(), "dropped")) << gone.status();
  }
}

TEST_P(KvStoreSuite, ExplainTellsWhatWasEvictedAndWhy) {
  Open({.host_bytes = 64 * kMiB});
  const KvPattern pattern = Register(BlockLayout());
  for (int i = 0; i < 16; ++i) {
    Save(pattern, "s" + std::to_string(i), ContextOf(i, 64 * 100));
  }
  const auto gone = kv().Explain({.session = "s0"});
  ASSERT_TRUE(gone.ok()) << gone.status();
  ExpectParts(*gone, 6400);
  EXPECT_LT(gone->restorable_tokens, 6400u);
  EXPECT_TRUE(absl::StrContains(TextOf(*gone), "evicted")) << TextOf(*gone);
}

TEST_P(KvStoreSuite, TheTreeCountsWhatIsShared) {
  const KvPattern pattern = Register(TinyLayout());
  const KvContext base = ContextOf(1, 64);
  Save(pattern, "a", Extended(base, 2, 16));
  Save(pattern, "b", Extended(base, 3, 32));
  const auto nodes = kv().Tree({});
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  ASSERT_EQ(nodes->size(), 3u);
  const TreeNode& trunk = nodes->front();
  EXPECT_EQ(trunk.depth, 0u);
  EXPECT_EQ(trunk.token_begin, 0u);
  EXPECT_EQ(trunk.token_count, 64u);
  EXPECT_EQ(trunk.chunk_count, 4u);
  uint64_t tokens = 0;
  for (const TreeNode& node : *nodes) tokens += node.token_count;
  EXPECT_EQ(tokens, 64u + 16 + 32);
  for (size_t i = 1; i < nodes->size(); ++i) {
    EXPECT_EQ((*nodes)[i].depth, 1u);
    EXPECT_EQ((*nodes)[i].token_begin, 64u);
  }
}

TEST_P(KvStoreSuite, VerifyReadsEveryByteAndFindsPlantedDamage) {
  const KvPattern pattern = Register(BlockLayout());
  const KvContext good = ContextOf(1, 200);
  const CommitResult saved = Save(pattern, "good", good);
  uint64_t last_done = 0, last_total = 0;
  auto report = kv().Verify({}, [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last_done);
    last_done = done;
    last_total = total;
  });
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->chunks_checked, 4u);
  EXPECT_GE(report->bytes_checked, saved.new_bytes);
  EXPECT_EQ(report->host_copies_damaged + report->disk_copies_damaged, 0u);
  EXPECT_EQ(last_done, last_total);

  const KvContext bad = ContextOf(2, 200);
  auto ticket = BeginSaveOf(kv(), pattern, {.session = "bad", .context = &bad});
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(FillTicket(**ticket, pattern, bad).ok());
  (*ticket)->Page(1, 3)[0] ^= std::byte{1};
  const auto committed = (*ticket)->Commit(absl::Seconds(60));
  ticket->reset();
  if (absl::IsDataLoss(committed.status())) {
    GTEST_SKIP() << "the commit found the damage by itself: " << committed.status();
  }
  ASSERT_TRUE(committed.ok()) << committed.status();
  report = kv().Verify({.session = "good"}, {});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->host_copies_damaged, 0u);
  // A disk tier notices when it writes the chunk.
  const bool noticed = kv().StatSession("bad")->restorable_tokens < 200;
  report = kv().Verify({.session = "bad", .repair = true}, {});
  ASSERT_TRUE(report.ok()) << report.status();
  if (!noticed) {
    EXPECT_EQ(report->host_copies_damaged, 1u);
    EXPECT_EQ(report->copies_dropped, 1u);
    EXPECT_EQ(report->problems.size(), 1u);
  }
  EXPECT_EQ(Restore(pattern, "bad", bad), 64u);
  report = kv().Verify({}, {});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->host_copies_damaged, 0u);
  EXPECT_EQ(Restore(pattern, "good", good), 200u);
}

TEST_P(KvStoreSuite, StatusNamesWhatIsInUse) {
  const KvPattern pattern = Register(TinyLayout());
  Save(pattern, "s", ContextOf(1, 40));
  const StoreStatus status = Status();
  EXPECT_NE(status.version, "");
  EXPECT_NE(status.durability, "");
  EXPECT_EQ(status.policy, "lru");
  EXPECT_EQ(status.session_count, 1u);
  EXPECT_EQ(status.chunk_count, 3u);
  EXPECT_EQ(status.host.capacity_bytes, 256 * kMiB);
  EXPECT_NE(status.host.description, "");
  EXPECT_LE(status.host.used_bytes, status.host.reserved_bytes);
  EXPECT_LE(status.host.reserved_bytes, status.host.capacity_bytes);
  for (const NamedHistogram& h : status.histograms) {
    EXPECT_EQ(h.counts.size(), h.upper_bounds.size() + 1) << h.name;
    EXPECT_TRUE(std::is_sorted(h.upper_bounds.begin(), h.upper_bounds.end())) << h.name;
  }
}

}  // namespace
}  // namespace turnkeep::testing
