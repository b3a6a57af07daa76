// DeFT (arXiv 2404.00242), section 3: KV-guided grouping with the tree flattened depth first and
// cut into equal blocks. A block's queries are those below any of its nodes; which tokens each of
// them sees is a bit mask. Blocks within one node need none.
#include <algorithm>

#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {

namespace {

// The sequences below any of the pieces, in depth-first order.
std::vector<ForestSequence> SequencesOf(const DepthFirst& order, std::span<const NodePiece> block) {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  for (const NodePiece& piece : block)
    ranges.emplace_back(order.first_sequence[piece.node], order.end_sequence[piece.node]);
  std::sort(ranges.begin(), ranges.end());
  std::vector<ForestSequence> sequences;
  uint32_t next = 0;
  for (const auto& [begin, end] : ranges) {
    for (uint32_t i = std::max(begin, next); i < end; ++i) sequences.push_back(order.sequences[i]);
    next = std::max(next, end);
  }
  return sequences;
}

void AddBlock(const DepthFirst& order, const std::vector<NodePiece>& block, PlanBuilder* builder) {
  if (block.empty()) return;
  if (block.size() == 1) return builder->AddPath(block, order.Below(block[0].node));
  builder->AddMasked(block, SequencesOf(order, block));
}

}  // namespace

void PlanFlattenTree(const PrefixForest& forest, const DepthFirst& order,
                     const AttentionPlannerOptions& options, AttentionPlan* plan) {
  PlanBuilder builder(forest, options, plan);
  std::vector<NodePiece> block;
  uint32_t block_tokens = 0;
  for (const ForestNode node : order.nodes) {
    const uint32_t tokens = forest.nodes()[node].token_count;
    // A tree's blocks do not reach into the next tree.
    if (forest.nodes()[node].parent == kNoForestNode) {
      AddBlock(order, block, &builder);
      block.clear();
      block_tokens = 0;
    }
    for (uint32_t begin = 0; begin < tokens;) {
      const uint32_t count = std::min(tokens - begin, options.block_tokens - block_tokens);
      block.push_back({node, begin, begin + count});
      begin += count;
      block_tokens += count;
      if (block_tokens < options.block_tokens) continue;
      AddBlock(order, block, &builder);
      block.clear();
      block_tokens = 0;
    }
  }
  AddBlock(order, block, &builder);
  builder.Finish();
}

namespace {

class FlattenTreePlanner final : public AttentionPlanner {
 public:
  explicit FlattenTreePlanner(const AttentionPlannerOptions& options) : AttentionPlanner(options) {}
  std::string_view name() const override { return "flatten_tree"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    order_.Assign(forest);
    PlanFlattenTree(forest, order_, options_, plan);
  }

  DepthFirst order_;
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeFlattenTreePlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<FlattenTreePlanner>(options);
}

}  // namespace turnkeep
