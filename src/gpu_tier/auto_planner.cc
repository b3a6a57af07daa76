// The plan that takes least by AttentionCosts. From the roots down it decides for every node
// whether it becomes a unit for all sequences below it (two_phase, relay) or is read together with
// what follows it, once for each child (towards per_sequence), so that one tree may mix both; then
// it compares the whole with flatten_tree and per_sequence.
//
// It comes down to per_sequence, the very same plan, unless another one is predicted to gain more
// than the prediction may be wrong by. What it takes to find out must not be lost either: a bound
// that needs one pass over sequences and nodes says whether there can be a gain that is worth
// looking at the tree, and plans are compared by their costs, before one of them is made.
#include <algorithm>
#include <limits>

#include "gpu_tier/attention_cost_model.h"
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {
namespace {

// Of per_sequence's time, what another plan must be predicted to take at most: costs are measured
// on a machine that does other things too.
constexpr double kGain = 0.9;
// Of what planning takes, what must be gained.
constexpr double kOverPlanning = 2;
// Looking at the tree takes so much of planning, and may take so much of per_sequence's time, or of
// what could be gained.
constexpr double kLook = 1.2;
constexpr double kLookShare = 0.01;
constexpr double kLookGain = 0.05;
// Tasks are made smaller as long as threads would otherwise stand still for more than this share.
constexpr double kIdle = 0.02;
// Into so many tasks a thread, if all were equal, a long unit is split at most.
constexpr uint32_t kMostParts = 8;

class AutoPlanner final : public AttentionPlanner {
 public:
  explicit AutoPlanner(const AttentionPlannerOptions& options)
      : AttentionPlanner(options),
        model_(options),
        threads_(std::max(1u, options.target_tasks / 8)),
        calls_(static_cast<double>(options.shape.kv_heads) / threads_),
        schedule_(threads_) {}
  std::string_view name() const override { return "auto"; }

 private:
  void Build(const PrefixForest& forest, AttentionPlan* plan) override {
    if (!WorthALook(forest)) return PlanPerSequence(forest, options_, plan);
    order_.Assign(forest);
    CountQueries(forest);
    const double cost = Decide(forest) * calls_;
    const double flat = Flattened(forest) * calls_;
    const double apart = PerSequenceEnd(forest);
    // Splitting and merging add to what units cost.
    if (std::min(cost, flat) > kGain * apart) return PlanPerSequence(forest, options_, plan);
    const double decided = SplitDecided(kGain * apart);
    const double best = std::min(decided, flat);
    if (best > kGain * apart || apart - best < kOverPlanning * planning_)
      return PlanPerSequence(forest, options_, plan);
    if (flat < decided) return PlanFlattenTree(forest, order_, options_, plan);
    PlanDecided(forest, plan);
  }

  // Sets per_sequence_ and planning_ too.
  bool WorthALook(const PrefixForest& forest) {
    per_sequence_ = 0;
    double least = 0;
    uint64_t path_tokens = 0;
    size_t sequences = 0;
    for (const PrefixForest::Sequence& sequence : forest.sequences()) {
      if (sequence.query_tokens == 0) continue;
      const uint32_t tokens = forest.PathTokens(sequence.leaf);
      per_sequence_ += model_.Unit(tokens, sequence.query_tokens);
      least += model_.LeastOfQuery() * sequence.query_tokens * tokens;
      path_tokens += tokens;
      ++sequences;
    }
    const uint64_t unique = forest.UniqueTokens();
    if (sequences < 2 || path_tokens <= unique) return false;
    const auto items = static_cast<double>(forest.nodes().size() + sequences);
    planning_ = items * options_.costs.planning;
    const double look = kLook * planning_;
    const double all = per_sequence_ * calls_;
    const double gain =
        all - std::max(least, static_cast<double>(unique) * model_.Token(1)) * calls_;
    return gain > kOverPlanning * planning_ && (look < kLookShare * all || look < kLookGain * gain);
  }

  void CountQueries(const PrefixForest& forest) {
    queries_.resize(forest.nodes().size());
    for (const ForestNode index : order_.nodes) queries_[index] = 0;
    for (size_t i = order_.nodes.size(); i-- > 0;) {
      const PrefixForest::Node& node = forest.nodes()[order_.nodes[i]];
      for (const ForestSequence s : node.sequences)
        queries_[order_.nodes[i]] += forest.sequences()[s].query_tokens;
      if (node.parent != kNoForestNode) queries_[node.parent] += queries_[order_.nodes[i]];
    }
  }

  struct Visit {
    ForestNode node;
    uint32_t pieces;  // of its path that are read with it
    uint32_t tokens;  // of those
    uint32_t units;   // above those
  };
  struct Decision {
    ForestNode node;
    uint32_t pieces;  // the last ones of its path
    uint32_t tokens;
    bool unit;         // for all below it, otherwise for each sequence that ends in it
    bool partial;      // its results are merged with others
    uint64_t units;    // one, or one for each of those sequences
    uint64_t queries;  // of a unit; of several the mean
  };

  // Fills decisions_; returns what they cost on one thread, not split.
  double Decide(const PrefixForest& forest) {
    decisions_.clear();
    double cost = 0;
    visits_.clear();
    for (size_t i = forest.roots().size(); i-- > 0;)
      visits_.push_back({forest.roots()[i], 0, 0, 0});
    while (!visits_.empty()) {
      auto [index, pieces, tokens, units] = visits_.back();
      visits_.pop_back();
      const PrefixForest::Node& node = forest.nodes()[index];
      pieces += node.token_count > 0 ? 1 : 0;
      tokens += node.token_count;
      const bool alone = node.children.empty() && node.sequences.size() <= 1;
      const bool unit = alone || ReadOnce(forest, node, queries_[index], tokens);
      if (tokens > 0 && unit) {
        decisions_.push_back(
            {index, pieces, tokens, true, !node.children.empty() || units > 0, 1, queries_[index]});
      } else if (tokens > 0 && !node.sequences.empty()) {
        uint64_t queries = 0;
        for (const ForestSequence s : node.sequences) queries += forest.sequences()[s].query_tokens;
        const uint64_t count = node.sequences.size();
        decisions_.push_back(
            {index, pieces, tokens, false, units > 0, count, (queries + count - 1) / count});
      }
      if (tokens > 0 && (unit || !node.sequences.empty())) {
        const Decision& decision = decisions_.back();
        cost += static_cast<double>(decision.units) * model_.Unit(tokens, decision.queries);
      }
      const uint32_t above = units + (unit && tokens > 0 ? 1 : 0);
      for (size_t i = node.children.size(); i-- > 0;) {
        if (unit) {
          visits_.push_back({node.children[i], 0, 0, above});
        } else {
          visits_.push_back({node.children[i], pieces, tokens, above});
        }
      }
    }
    return cost;
  }

  // Adds units that are split into parts of at most most_tokens to schedule_.
  void Schedule(uint64_t units, uint64_t tokens, uint64_t queries, uint32_t most_tokens,
                bool partial) {
    if (tokens == 0) return;
    const uint64_t heads = units * options_.shape.kv_heads;
    const uint64_t part = std::min<uint64_t>(tokens, PartTokens(tokens, most_tokens));
    const double merge = partial || part < tokens ? model_.Partials(queries) : 0;
    schedule_.Add(model_.Unit(part, queries) + merge, heads * (tokens / part));
    if (tokens % part > 0) schedule_.Add(model_.Unit(tokens % part, queries) + merge, heads);
  }

  double PerSequenceEnd(const PrefixForest& forest) {
    uint64_t tokens = 0, count = 0;
    for (const PrefixForest::Sequence& sequence : forest.sequences()) {
      if (sequence.query_tokens == 0) continue;
      tokens += forest.PathTokens(sequence.leaf);
      ++count;
    }
    const uint32_t split = SplitTokens(options_, count, tokens);
    schedule_.Clear();
    for (const PrefixForest::Sequence& sequence : forest.sequences()) {
      if (sequence.query_tokens > 0)
        Schedule(1, forest.PathTokens(sequence.leaf), sequence.query_tokens, split, false);
    }
    return schedule_.End();
  }

  // When the decided units are done, on all threads. With few heads one unit for all may be most of
  // the work, which a single thread would do: sets the parts that they are split into for that.
  // Each part loads its queries and leaves results to merge once more, so that more parts may take
  // longer: where the work of the fewest parts, evenly spread, takes more than `most_useful`, no
  // others are tried.
  double SplitDecided(double most_useful) {
    uint64_t items = 0, tokens = 0;
    for (const Decision& decision : decisions_) {
      items += decision.units;
      tokens += decision.units * decision.tokens;
    }
    const uint32_t split = SplitTokens(options_, items, tokens);
    double best = std::numeric_limits<double>::max();
    double whole = 0;  // on one thread, not split
    for (uint32_t parts = 0; parts <= kMostParts; parts = parts == 0 ? 1 : 2 * parts) {
      const double most =
          parts == 0 ? std::numeric_limits<double>::max() : whole / (threads_ * parts);
      schedule_.Clear();
      for (const Decision& decision : decisions_) {
        Schedule(decision.units, decision.tokens, decision.queries,
                 std::min(split, PartOf(decision, most)), decision.partial);
      }
      if (parts == 0) whole = schedule_.Balanced() * threads_;
      const double end = schedule_.End();
      if (end < best) {
        best = end;
        most_ = most;
      }
      if (end <= (1 + kIdle) * schedule_.Balanced() || schedule_.Balanced() > most_useful) break;
    }
    return best;
  }

  // The most tokens of parts that take at most `most`.
  uint32_t PartOf(const Decision& decision, double most) const {
    const double parts = model_.Unit(decision.tokens, decision.queries) / most;
    if (!decision.unit || parts <= 1) return 0xFFFFFFFFu;
    return std::max(AttentionCosts::kTileTokens, static_cast<uint32_t>(decision.tokens / parts));
  }

  // Whether a node and what is read with it cost less as a unit than beside everything below it.
  bool ReadOnce(const PrefixForest& forest, const PrefixForest::Node& node, uint64_t queries,
                uint32_t tokens) const {
    if (tokens == 0) return true;
    const double once = model_.Unit(tokens, queries) + model_.Partials(2 * queries);
    double apart = 0;
    for (const ForestNode child : node.children) apart += tokens * model_.Token(queries_[child]);
    for (const ForestSequence s : node.sequences)
      apart += tokens * model_.Token(forest.sequences()[s].query_tokens);
    return once < apart;
  }

  // What flatten_tree's blocks cost, whose queries are the hull of those below their nodes.
  double Flattened(const PrefixForest& forest) const {
    constexpr double kNever = std::numeric_limits<double>::max();
    // Flattening pays where nodes are small; elsewhere few blocks would be mixed.
    if (order_.nodes.size() * options_.block_tokens <= forest.UniqueTokens()) return kNever;
    double cost = 0;
    uint32_t tokens = 0;  // in the block
    uint64_t queries = 0;
    uint32_t end_sequence = 0;
    uint32_t nodes = 0;
    const auto close = [&] {
      if (tokens == 0) return;
      cost += model_.Unit(tokens, queries) + model_.Partials(queries);
      if (nodes > 1) cost += model_.Masks(tokens, queries);
      tokens = nodes = end_sequence = 0;
      queries = 0;
    };
    for (const ForestNode index : order_.nodes) {
      const PrefixForest::Node& node = forest.nodes()[index];
      if (node.parent == kNoForestNode) close();
      for (uint32_t begin = 0; begin < node.token_count;) {
        const uint32_t count = std::min(node.token_count - begin, options_.block_tokens - tokens);
        // Depth first, a node lies below the last one's path or behind it.
        if (order_.end_sequence[index] > end_sequence) {
          queries += queries_[index];
          end_sequence = order_.end_sequence[index];
        }
        ++nodes;
        tokens += count;
        begin += count;
        if (tokens == options_.block_tokens) close();
      }
    }
    close();
    return cost;
  }

  void PlanDecided(const PrefixForest& forest, AttentionPlan* plan) {
    PlanBuilder builder(forest, options_, plan);
    for (const Decision& decision : decisions_) {
      PlanBuilder::PathOf(forest, decision.node, &path_, decision.pieces);
      if (!decision.unit) {
        for (const ForestSequence& s : forest.nodes()[decision.node].sequences)
          builder.AddPath(path_, {&s, 1});
        continue;
      }
      builder.AddPath(path_, order_.Below(decision.node), PartOf(decision, most_));
    }
    builder.Finish();
  }

  const AttentionCostModel model_;
  const uint32_t threads_;  // target_tasks is eight times as many
  const double calls_;      // all heads, on as many threads
  TaskSchedule schedule_;
  double most_ = 0;          // of a part of a decided unit
  double per_sequence_ = 0;  // of the running call
  double planning_ = 0;
  DepthFirst order_;
  std::vector<uint64_t> queries_;  // below each node
  std::vector<Visit> visits_;
  std::vector<Decision> decisions_;
  std::vector<NodePiece> path_;
};

}  // namespace

std::unique_ptr<AttentionPlanner> MakeAutoPlanner(const AttentionPlannerOptions& options) {
  return std::make_unique<AutoPlanner>(options);
}

}  // namespace turnkeep
