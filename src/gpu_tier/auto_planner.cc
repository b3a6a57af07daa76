// The cheapest plan by the costs of AttentionCosts. From the roots down it decides for every node
// whether it becomes a unit for all sequences below it (two_phase, relay) or is read together
// with what follows it, once for each child (towards per_sequence), so that one tree may mix
// both; then it compares the whole with flatten_tree and per_sequence. Where per_sequence will
// win anyway nothing else is made: a small batch is served in less time than a few plans take.
#include <algorithm>

#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {
namespace {

// Sharing must promise this much before it is chosen: costs are measured on a machine that does
// other things too, and a shape that gains little may lose as much.
constexpr double kGain = 0.93;

// What planning takes itself, nanoseconds a node or sequence; sharing must gain twice as much.
constexpr double kPlanning = 500;

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
    const auto& sequences = forest.sequences();
    if (sequences.size() < 2) return PlanPerSequence(forest, options_, plan);
    const CostModel model(forest, options_);
    const DepthFirst order(forest);
    const bool shared = std::any_of(order.nodes.begin(), order.nodes.end(), [&](ForestNode node) {
      return forest.nodes()[node].token_count > 0 && order.Below(node).size() > 1;
    });
    if (!shared) return PlanPerSequence(forest, options_, plan);
    double per_sequence = 0;
    for (const PrefixForest::Sequence& sequence : sequences) {
      if (sequence.query_tokens == 0) continue;
      per_sequence += forest.PathTokens(sequence.leaf) * model.Token(sequence.query_tokens) +
                      model.Unit(sequence.query_tokens);
    }
    double best = Decide(forest, order, model);
    // All heads, on as many threads as target_tasks is eight times.
    const double calls = options_.shape.kv_heads / std::max(1.0, options_.target_tasks / 8.0);
    const double planning = kPlanning * static_cast<double>(order.nodes.size() + sequences.size());
    if ((per_sequence - best) * calls < 2 * planning && per_sequence * calls < 50 * planning)
      return PlanPerSequence(forest, options_, plan);
    // Flattening pays where nodes are small; it is not tried where few blocks would be mixed.
    const bool flatten = order.nodes.size() * options_.block_tokens > forest.UniqueTokens();
    if (!flatten && per_sequence * kGain < best) return PlanPerSequence(forest, options_, plan);
    PlanDecided(forest, order, plan);
    best = model.Of(*plan);
    if (flatten) {
      AttentionPlan other;
      PlanFlattenTree(forest, options_, &other);
      if (const double cost = model.Of(other); cost < best) {
        best = cost;
        std::swap(*plan, other);
      }
    }
    if (per_sequence * kGain < best) PlanPerSequence(forest, options_, plan);
  }

  struct Visit {
    ForestNode node;
    size_t carried;  // pieces of its path that are read with it
    size_t units;    // above those
  };
  struct Decision {
    ForestNode node;
    size_t pieces;  // the last ones of its path
    bool unit;      // for all below it, otherwise for each sequence that ends in it
  };

  // Fills decisions_; returns about what they cost.
  double Decide(const PrefixForest& forest, const DepthFirst& order, const CostModel& model) {
    decisions_.clear();
    double cost = 0;
    std::vector<Visit> stack;
    for (size_t i = forest.roots().size(); i-- > 0;) stack.push_back({forest.roots()[i], 0, 0});
    while (!stack.empty()) {
      const auto [index, carried, units] = stack.back();
      stack.pop_back();
      const PrefixForest::Node& node = forest.nodes()[index];
      const size_t pieces = carried + (node.token_count > 0 ? 1 : 0);
      PlanBuilder::PathOf(forest, index, &path_, pieces);
      double tokens = 0;
      for (const NodePiece& piece : path_) tokens += piece.end - piece.begin;
      const bool alone = order.Below(index).size() <= 1 && node.children.empty();
      const bool unit = alone || ReadOnce(forest, order, model, index, tokens);
      decisions_.push_back({index, pieces, unit});
      const auto add = [&](uint64_t queries, bool partial) {
        cost += tokens * model.Token(queries) + model.Unit(queries);
        if (partial) cost += model.Partials(queries);
      };
      if (unit) {
        add(model.QueriesOf(order.Below(index)), !alone || units > 0);
      } else {
        for (const ForestSequence& s : node.sequences) add(model.QueriesOf({&s, 1}), units > 0);
      }
      for (size_t i = node.children.size(); i-- > 0;)
        stack.push_back({node.children[i], unit ? 0 : pieces, units + (unit ? 1 : 0)});
    }
    return cost;
  }

  void PlanDecided(const PrefixForest& forest, const DepthFirst& order, AttentionPlan* plan) {
    PlanBuilder builder(forest, options_, plan);
    for (const Decision& decision : decisions_) {
      PlanBuilder::PathOf(forest, decision.node, &path_, decision.pieces);
      if (decision.unit) {
        builder.AddPath(path_, order.Below(decision.node));
        continue;
      }
      for (const ForestSequence& s : forest.nodes()[decision.node].sequences)
        builder.AddPath(path_, {&s, 1});
    }
    builder.Finish();
  }

  static bool ReadOnce(const PrefixForest& forest, const DepthFirst& order, const CostModel& model,
                       ForestNode index, double tokens) {
    const PrefixForest::Node& node = forest.nodes()[index];
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

  std::vector<Decision> decisions_;
  std::vector<NodePiece> path_;
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeAutoPlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<AutoPlanner>(options);
}

}  // namespace turnkeep
