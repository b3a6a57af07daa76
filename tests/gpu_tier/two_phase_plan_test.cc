// ChunkAttention's plan, kept while sequences join, leave and grow, against one made anew.
#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "gpu_tier/attention_planner.h"
#include "gpu_tier/testing/attention_case.h"
#include "kernels/attention_cpu.h"

namespace turnkeep::testing {
namespace {

constexpr uint32_t kPages = 600;

AttentionShape Shape(uint32_t query_heads, uint32_t kv_heads, uint32_t page_tokens) {
  return {.query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = 8,
          .page_tokens = page_tokens,
          .dtype = DType::kFloat32,
          .scale = 0.3f};
}

// A batch that changes at random. Pages are drawn, not handed out: contents do not matter.
class Batch {
 public:
  Batch(const AttentionShape& shape, uint64_t seed)
      : case_(shape, PrefixForest(shape.page_tokens), kPages, seed), random_(seed) {}

  AttentionCase& c() { return case_; }
  uint64_t Draw(uint64_t below) { return random_() % below; }
  size_t size() const { return present_.size(); }

  std::vector<uint32_t> Pages(uint32_t before, uint32_t tokens) {
    const uint32_t page = case_.shape().page_tokens;
    std::vector<uint32_t> pages((before + tokens + page - 1) / page - (before + page - 1) / page);
    for (uint32_t& p : pages) p = static_cast<uint32_t>(Draw(kPages));
    return pages;
  }
  ForestNode Node(ForestNode parent, uint32_t tokens) {
    return *case_.forest().AddNode(parent, Pages(0, tokens), tokens);
  }
  void Sequence(ForestNode leaf, uint32_t query_tokens = 1) {
    present_.push_back(*case_.forest().AddSequence(leaf, query_tokens));
  }
  // A fork of a node on somebody's path, or a tree of its own; some stay at an existing leaf.
  void Join(uint32_t max_tokens, uint32_t max_queries) {
    const PrefixForest& forest = case_.forest();
    ForestNode at = kNoForestNode;
    if (!present_.empty() && Draw(8) != 0) {
      at = forest.sequences()[present_[Draw(present_.size())]].leaf;
      for (uint64_t up = Draw(4); up > 0 && at != kNoForestNode; --up)
        at = forest.nodes()[at].parent;
    }
    if (at == kNoForestNode) at = Node(at, 1 + static_cast<uint32_t>(Draw(max_tokens)));
    if (Draw(4) != 0) at = Node(at, static_cast<uint32_t>(Draw(max_tokens)));
    Sequence(at, 1 + static_cast<uint32_t>(Draw(std::min(forest.PathTokens(at), max_queries))));
  }
  void Leave() {
    const size_t i = Draw(present_.size());
    case_.forest().RemoveSequence(present_[i]);
    present_.erase(present_.begin() + static_cast<ptrdiff_t>(i));
  }
  void Grow(uint32_t max_tokens) {
    const ForestNode leaf = case_.forest().sequences()[present_[Draw(present_.size())]].leaf;
    if (case_.forest().nodes()[leaf].children.empty())
      Extend(leaf, 1 + static_cast<uint32_t>(Draw(max_tokens)));
  }
  void Extend(ForestNode leaf, uint32_t tokens) {
    const auto pages = Pages(case_.forest().nodes()[leaf].token_count, tokens);
    ASSERT_TRUE(case_.forest().Extend(leaf, tokens, pages).ok());
  }
  void DecodeStep() {
    for (const ForestSequence s : present_) Extend(case_.forest().sequences()[s].leaf, 1);
  }

 private:
  AttentionCase case_;
  std::mt19937_64 random_;
  std::vector<ForestSequence> present_;
};

// What a plan does, in an order of its own: tokens, first page and queries of each unit.
std::vector<std::array<uint32_t, 4>> WorkOf(const AttentionPlan& plan) {
  std::vector<std::array<uint32_t, 4>> work;
  for (const AttentionPlan::Unit& unit : plan.units) {
    const AttentionPlan::Segment& segment = plan.segments[unit.first_segment];
    work.push_back({unit.token_count, unit.query_count, plan.pages[segment.first_page],
                    unit.segment_count * 1000 + segment.offset});
  }
  std::sort(work.begin(), work.end());
  return work;
}

void ExpectAsMadeAnew(Batch& batch, AttentionPlanner& kept, CpuAttention& attention) {
  AttentionCase& c = batch.c();
  const auto anew = *MakeAttentionPlanner(
      "two_phase", {.shape = c.shape(), .target_tasks = 12, .min_split_tokens = 48});
  const AttentionPlan& a = kept.Plan(c.forest());
  const AttentionPlan& b = anew->Plan(c.forest());
  for (const AttentionPlan* plan : {&a, &b}) {
    const absl::Status valid = ValidateAttentionPlan(*plan, c.shape(), c.page_count());
    ASSERT_TRUE(valid.ok()) << valid;
  }
  ASSERT_EQ(WorkOf(a), WorkOf(b));
  ASSERT_EQ(a.row_count, b.row_count);
  ASSERT_EQ(a.partial_count, b.partial_count);
  ASSERT_EQ(a.merge_begin, b.merge_begin);
  attention.Run(c.shape(), c.kv(), a, c.Tensors());
  const std::vector<float> output = c.output();
  const std::vector<float> lse = c.lse();
  attention.Run(c.shape(), c.kv(), b, c.Tensors());
  ASSERT_EQ(lse, c.lse());
  ASSERT_EQ(output, c.output());
}

AttentionPlannerOptions Options(const AttentionShape& shape) {
  return {.shape = shape, .target_tasks = 12, .min_split_tokens = 48};
}

// The same batch is planned after each change, or after several, with units that are split and
// without, with one query a sequence and several.
TEST(TwoPhasePlan, KeptThroughThousandsOfChangesEqualsOneMadeAnew) {
  ThreadPool pool(1);
  CpuAttention attention(&pool);
  uint64_t replanned = 0;
  uint64_t changes = 0;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const uint32_t page_tokens = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 5 : 16;
    Batch batch(Shape(seed % 2 == 0 ? 2 : 4, seed % 4 < 2 ? 2 : 1, page_tokens), seed);
    const uint32_t most = seed % 5 == 0 ? 4 : 14;  // few sequences are split
    const uint32_t queries = seed % 3 == 0 ? 4 : 1;
    const auto kept = *MakeAttentionPlanner("two_phase", Options(batch.c().shape()));
    for (int step = 0; step < 200; ++step) {
      for (uint64_t i = seed % 2 == 0 ? 1 : 1 + batch.Draw(4); i > 0; --i, ++changes) {
        const uint64_t what = batch.Draw(6);
        if (batch.size() == 0 || (what < 2 && batch.size() < most)) {
          batch.Join(what == 0 ? 12 : 60, queries);
        } else if (what < 4 && batch.size() > most / 2) {
          batch.Leave();
        } else {
          batch.Grow(batch.Draw(10) == 0 ? 70 : 3);
        }
      }
      batch.c().DrawQueries();
      ExpectAsMadeAnew(batch, *kept, attention);
      if (HasFailure()) return;
    }
    std::string where;
    EXPECT_LE(batch.c().WorstError(&where), 3e-5) << where;
    replanned += kept->replan_count();
    EXPECT_LT(kept->plan_count(), 40u);
  }
  EXPECT_GT(changes, 5000u);
  EXPECT_GT(replanned, 2000u);
}

TEST(TwoPhasePlan, DecodeStepsArePatchedWithoutPlanning) {
  ThreadPool pool(1);
  CpuAttention attention(&pool);
  Batch batch(Shape(4, 2, 16), 1);
  const ForestNode system = batch.Node(kNoForestNode, 100);
  const ForestNode tools = batch.Node(system, 37);
  for (int i = 0; i < 5; ++i) batch.Sequence(batch.Node(i % 2 == 0 ? system : tools, 20 + i));
  batch.Sequence(batch.Node(kNoForestNode, 3));
  batch.c().DrawQueries();
  const auto kept = *MakeAttentionPlanner("two_phase", Options(batch.c().shape()));
  ExpectAsMadeAnew(batch, *kept, attention);
  const AttentionPlan& plan = kept->Plan(batch.c().forest());
  const auto units = plan.units.size();
  const auto queries = plan.queries;
  for (int step = 0; step < 300; ++step) {
    batch.DecodeStep();
    ExpectAsMadeAnew(batch, *kept, attention);
    if (HasFailure()) return;
  }
  EXPECT_EQ(kept->plan_count(), 1u);
  EXPECT_EQ(kept->replan_count(), 0u);
  EXPECT_EQ(kept->patch_count(), 300u);
  EXPECT_EQ(plan.units.size(), units);
  EXPECT_EQ(plan.queries, queries);
}

// A sequence that joins or leaves touches its path, not the others' pages.
TEST(TwoPhasePlan, OnlyWhatChangedIsMadeAgain) {
  Batch batch(Shape(4, 4, 16), 1);
  const ForestNode system = batch.Node(kNoForestNode, 400);
  for (int i = 0; i < 8; ++i) batch.Sequence(batch.Node(system, 100));
  const auto kept = *MakeAttentionPlanner("two_phase", Options(batch.c().shape()));
  const AttentionPlan& plan = kept->Plan(batch.c().forest());
  const std::vector<uint32_t> pages = plan.pages;
  const std::vector<AttentionPlan::Segment> segments = plan.segments;
  batch.Sequence(batch.Node(system, 50));
  kept->Plan(batch.c().forest());
  EXPECT_EQ(kept->plan_count(), 1u);
  EXPECT_EQ(kept->replan_count(), 1u);
  // The newcomer's are behind the others', which have not moved.
  ASSERT_EQ(plan.segments.size(), segments.size() + 1);
  ASSERT_EQ(plan.pages.size(), pages.size() + 4 + 4);
  EXPECT_TRUE(std::equal(pages.begin(), pages.end(), plan.pages.begin()));
  batch.Leave();
  kept->Plan(batch.c().forest());
  EXPECT_EQ(kept->plan_count(), 1u);
  EXPECT_EQ(plan.pages.size(), pages.size() + 4 + 4);
}

TEST(TwoPhasePlan, IsMadeAnewWhereTheForestHasForgottenWhatChanged) {
  ThreadPool pool(1);
  CpuAttention attention(&pool);
  Batch batch(Shape(4, 2, 16), 1);
  const ForestNode system = batch.Node(kNoForestNode, 100);
  for (int i = 0; i < 6; ++i) batch.Sequence(batch.Node(system, 20 + i));
  batch.c().DrawQueries();
  const auto kept = *MakeAttentionPlanner("two_phase", Options(batch.c().shape()));
  ExpectAsMadeAnew(batch, *kept, attention);
  const uint64_t before = batch.c().forest().change_count();
  for (size_t i = 0; i < PrefixForest::kMaxChanges; i += 6) batch.DecodeStep();
  EXPECT_FALSE(batch.c().forest().ChangesSince(before).has_value());
  ExpectAsMadeAnew(batch, *kept, attention);
  EXPECT_EQ(kept->plan_count(), 2u);
}

}  // namespace
}  // namespace turnkeep::testing
