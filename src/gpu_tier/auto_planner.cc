// The cheapest plan by the costs of AttentionCosts. From the roots down it decides for every node
// whether it becomes a unit for all sequences below it (two_phase, relay) or is read together
// with what follows it, once for each child (towards per_sequence), so that one tree may mix
// both; then it compares the whole with flatten_tree and per_sequence.
#include <algorithm>

#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {
namespace {

// Sharing must promise this much before it is chosen: costs are measured on a machine that does
// other things too, and a shape that gains little may lose as much.
constexpr double kGain = 0.93;

class CostModel {
 public:
  CostModel(const PrefixForest& forest, const AttentionPlannerOptions& options)
      : forest_(forest), costs_(options.costs), shape_(options.shape) {}

  // Nanoseconds a token of a unit with so many queries, one KV head.
  double Token(uint64_t queries) const {
    const uint64_t rows = queries * Group();
    if (rows == 0) return 0;
    if (rows < costs_.many_rows)
      return costs_.token_few + costs_.row_few * static_cast<double>(rows);
    const uint64_t padded = (rows + costs_.row_step - 1) / costs_.row_step * costs_.row_step;
    return costs_.token_many + costs_.row_many * static_cast<double>(padded);
  }
  double Unit(uint64_t queries) const {
    return costs_.unit + costs_.unit_row * static_cast<double>(queries * Group());
  }
  double Partials(uint64_t queries) const {
    return costs_.partial * static_cast<double>(queries) * static_cast<double>(Group());
  }
  uint64_t QueriesOf(std::span<const ForestSequence> sequences) const {
    uint64_t queries = 0;
    for (const ForestSequence s : sequences) queries += forest_.sequences()[s].query_tokens;
    return queries;
  }
  // Of a finished plan.
  double Of(const AttentionPlan& plan) const {
    double cost = Partials(plan.partial_count);
    for (const AttentionPlan::Unit& unit : plan.units)
      cost += Unit(unit.query_count) + unit.token_count * Token(unit.query_count);
    return cost;
  }

 private:
  uint64_t Group() const { return shape_.query_heads / shape_.kv_heads; }

  const PrefixForest& forest_;
  const AttentionCosts& costs_;
  const AttentionShape& shape_;
};

class AutoPlanner final : public AttentionPlanner {
 public:
  explicit AutoPlanner(const AttentionPlannerOptions& options) : AttentionPlanner(options) {}
  std::string_view name() const override { return "auto"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    const CostModel model(forest, options_);
    const DepthFirst order(forest);
    const bool shared = std::any_of(order.nodes.begin(), order.nodes.end(), [&](ForestNode node) {
      return forest.nodes()[node].token_count > 0 && order.Below(node).size() > 1;
    });
    if (!shared) return PlanPerSequence(forest, options_, plan);
    PlanMixed(forest, order, model, plan);
    double best = model.Of(*plan);
    AttentionPlan other;
    // Flattening pays where nodes are small; it is not tried where few blocks would be mixed.
    if (order.nodes.size() * options_.block_tokens > forest.UniqueTokens()) {
      PlanFlattenTree(forest, options_, &other);
      if (const double cost = model.Of(other); cost < best) {
        best = cost;
        std::swap(*plan, other);
      }
    }
    uint64_t path_tokens = 0;
    for (const PrefixForest::Sequence& sequence : forest.sequences())
      if (sequence.query_tokens > 0) path_tokens += forest.PathTokens(sequence.leaf);
    const double per_sequence = static_cast<double>(path_tokens) * model.Token(1) +
                                static_cast<double>(order.sequences.size()) * model.Unit(1);
    if (per_sequence * kGain < best) PlanPerSequence(forest, options_, plan);
  }

  struct Visit {
    ForestNode node;
    size_t carried;  // pieces of its path that are read with it
  };

  void PlanMixed(const PrefixForest& forest, const DepthFirst& order, const CostModel& model,
                 AttentionPlan* plan) const {
    PlanBuilder builder(forest, options_, plan);
    std::vector<Visit> stack;
    for (size_t i = forest.roots().size(); i-- > 0;) stack.push_back({forest.roots()[i], 0});
    while (!stack.empty()) {
      const auto [index, carried] = stack.back();
      stack.pop_back();
      const PrefixForest::Node& node = forest.nodes()[index];
      const std::vector<NodePiece> path = PlanBuilder::PathOf(forest, index);
      const std::span pieces =
          std::span(path).subspan(path.size() - carried - (node.token_count > 0 ? 1 : 0));
      const bool alone = order.Below(index).size() <= 1 && node.children.empty();
      const bool unit = alone || ReadOnce(forest, order, model, index, pieces);
      if (unit) {
        builder.AddPath(pieces, order.Below(index));
      } else {
        for (const ForestSequence& s : node.sequences) builder.AddPath(pieces, {&s, 1});
      }
      for (size_t i = node.children.size(); i-- > 0;)
        stack.push_back({node.children[i], unit ? 0 : pieces.size()});
    }
    builder.Finish();
  }

  static bool ReadOnce(const PrefixForest& forest, const DepthFirst& order, const CostModel& model,
                       ForestNode index, std::span<const NodePiece> pieces) {
    const PrefixForest::Node& node = forest.nodes()[index];
    double tokens = 0;
    for (const NodePiece& piece : pieces) tokens += piece.end - piece.begin;
    const uint64_t queries = model.QueriesOf(order.Below(index));
    const double once =
        tokens * model.Token(queries) + model.Unit(queries) + model.Partials(2 * queries);
    double apart = 0;
    for (const ForestNode child : node.children)
      apart += tokens * model.Token(model.QueriesOf(order.Below(child)));
    for (const ForestSequence& s : node.sequences)
      apart += tokens * model.Token(model.QueriesOf({&s, 1}));
    return once < apart;
  }
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeAutoPlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<AutoPlanner>(options);
}

}  // namespace turnkeep
