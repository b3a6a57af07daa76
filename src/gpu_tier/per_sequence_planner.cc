// Paged flash decoding: a sequence's queries read its whole path, sequence after sequence, long
// ones split.
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {

void PlanPerSequence(const PrefixForest& forest, const AttentionPlannerOptions& options,
                     AttentionPlan* plan) {
  PlanBuilder builder(forest, options, plan);
  std::vector<NodePiece> path;
  for (ForestSequence s = 0; s < forest.sequences().size(); ++s) {
    const PrefixForest::Sequence& sequence = forest.sequences()[s];
    if (sequence.query_tokens == 0) continue;
    PlanBuilder::PathOf(forest, sequence.leaf, &path);
    builder.AddPath(path, {&s, 1});
  }
  builder.Finish();
}

namespace {

class PerSequencePlanner final : public AttentionPlanner {
 public:
  explicit PerSequencePlanner(const AttentionPlannerOptions& options) : AttentionPlanner(options) {}
  std::string_view name() const override { return "per_sequence"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    PlanPerSequence(forest, options_, plan);
  }
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakePerSequencePlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<PerSequencePlanner>(options);
}

}  // namespace turnkeep
