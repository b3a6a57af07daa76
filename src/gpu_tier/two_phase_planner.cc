// ChunkAttention (arXiv 2402.15220), section 3: the chunk-first phase reads every node that more
// than one sequence shares, once for all of them; the sequence-first phase reads what is a
// sequence's own, as one run. The plan is kept while the forest changes: two_phase_plan.h.
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/two_phase_plan.h"

namespace turnkeep {
namespace {

class TwoPhasePlanner final : public AttentionPlanner {
 public:
  explicit TwoPhasePlanner(const AttentionPlannerOptions& options)
      : AttentionPlanner(options), kept_(options_) {}
  std::string_view name() const override { return "two_phase"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    kept_.Build(forest, plan);
  }
  Followed Follow(const PrefixForest& forest, AttentionPlan* plan) override {
    bool replanned = false;
    if (!kept_.Follow(forest, plan, &replanned)) return Followed::kNo;
    return replanned ? Followed::kReplanned : Followed::kPatched;
  }
  void Note(const PrefixForest& /*forest*/) override {}

  TwoPhasePlan kept_;
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeTwoPhasePlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<TwoPhasePlanner>(options);
}

}  // namespace turnkeep
