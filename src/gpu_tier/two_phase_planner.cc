// ChunkAttention (arXiv 2402.15220), section 3: the chunk-first phase reads every node that more
// than one sequence shares, once for all of them; the sequence-first phase reads what is a
// sequence's own, as one run.
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {
namespace {

class TwoPhasePlanner final : public AttentionPlanner {
 public:
  explicit TwoPhasePlanner(const AttentionPlannerOptions& options) : AttentionPlanner(options) {}
  std::string_view name() const override { return "two_phase"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    const DepthFirst order(forest);
    PlanBuilder builder(forest, options_, plan);
    for (const ForestNode node : order.nodes) {
      const uint32_t tokens = forest.nodes()[node].token_count;
      if (tokens == 0 || order.Below(node).size() < 2) continue;
      const NodePiece piece{node, 0, tokens};
      builder.AddPath({&piece, 1}, order.Below(node));
    }
    for (const ForestSequence s : order.sequences) {
      std::vector<NodePiece> own = PlanBuilder::PathOf(forest, forest.sequences()[s].leaf);
      std::erase_if(own, [&](const NodePiece& p) { return order.Below(p.node).size() > 1; });
      builder.AddPath(own, {&s, 1});
    }
    builder.Finish();
  }
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeTwoPhasePlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<TwoPhasePlanner>(options);
}

}  // namespace turnkeep
