// RelayAttention (arXiv 2402.14808), section 3: system attention takes all queries below a system
// prompt as one, context attention goes request by request, and the merge is the fusion by
// log-sum-exp. Any number of system prompts: one for each tree of the forest.
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {
namespace {

class RelayPlanner final : public AttentionPlanner {
 public:
  explicit RelayPlanner(const AttentionPlannerOptions& options) : AttentionPlanner(options) {}
  std::string_view name() const override { return "relay"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    const DepthFirst order(forest);
    PlanBuilder builder(forest, options_, plan);
    std::vector<NodePiece> path;
    for (const ForestNode root : forest.roots()) {
      const std::span<const ForestSequence> requests = order.Below(root);
      // The system prompt: the nodes that all requests of the tree share.
      std::vector<NodePiece> system;
      for (ForestNode node = root; requests.size() > 1;) {
        const PrefixForest::Node& at = forest.nodes()[node];
        if (at.token_count > 0) system.push_back({node, 0, at.token_count});
        if (at.children.size() != 1 || !at.sequences.empty()) break;
        node = at.children[0];
      }
      builder.AddPath(system, requests);
      for (const ForestSequence s : requests) {
        PlanBuilder::PathOf(forest, forest.sequences()[s].leaf, &path);
        builder.AddPath(std::span(path).subspan(system.size()), {&s, 1});
      }
    }
    builder.Finish();
  }
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeRelayPlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<RelayPlanner>(options);
}

}  // namespace turnkeep
