// Puts attention plans together for the planners: units from pieces of nodes, splits of long ones,
// and the merge lists. Internal to src/gpu_tier.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu_tier/attention_planner.h"
#include "gpu_tier/prefix_forest.h"

namespace turnkeep {

// Tokens [begin, end) of a node.
struct NodePiece {
  ForestNode node = kNoForestNode;
  uint32_t begin = 0;
  uint32_t end = 0;
};

class PlanBuilder {
 public:
  // All borrowed until Finish.
  PlanBuilder(const PrefixForest& forest, const AttentionPlannerOptions& options,
              AttentionPlan* plan)
      : forest_(forest), options_(options), plan_(plan) {
    items_.reserve(forest.nodes().size() + forest.sequences().size());
    pieces_.reserve(items_.capacity());
    sequences_.reserve(items_.capacity());
  }

  // The pieces follow one another on one path; the sequences are below all of them. Their unit is
  // split into equal parts of at most `most_tokens`.
  void AddPath(std::span<const NodePiece> pieces, std::span<const ForestSequence> sequences,
               uint32_t most_tokens = 0xFFFFFFFFu);
  // Pieces of several paths: a sequence sees the ones on its own.
  void AddMasked(std::span<const NodePiece> pieces, std::span<const ForestSequence> sequences);
  // Makes the plan. Rows that no unit serves get an empty one.
  void Finish();

  // The path from the root, or only its last `last` pieces; nodes without tokens have none.
  static void PathOf(const PrefixForest& forest, ForestNode leaf, std::vector<NodePiece>* path,
                     size_t last = SIZE_MAX);

 private:
  struct Item {
    size_t first_piece = 0;
    size_t piece_count = 0;
    size_t first_sequence = 0;
    size_t sequence_count = 0;
    uint32_t most_tokens = 0xFFFFFFFFu;
    bool masked = false;
  };
  void EmitPath(const Item& item, uint32_t max_tokens);
  void EmitMasked(const Item& item);
  void EmitEmpty();
  AttentionPlan::Unit& BeginUnit();
  void AddSegment(AttentionPlan::Unit& unit, const NodePiece& piece);
  void AddRow(AttentionPlan::Unit& unit, uint32_t row, uint32_t limit);
  void LinkPartials();

  const PrefixForest& forest_;
  const AttentionPlannerOptions& options_;
  AttentionPlan* const plan_;
  std::vector<Item> items_;
  std::vector<NodePiece> pieces_;
  std::vector<ForestSequence> sequences_;
};

// The most tokens of a unit: target_tasks tasks over all, where `item_count` units are fewer than
// those. A power of two, so that it seldom changes while a batch grows.
uint32_t SplitTokens(const AttentionPlannerOptions& options, uint64_t item_count,
                     uint64_t token_count);
// Of equal parts of `token_count` that are none larger, in whole tiles of the CPU executor.
uint32_t PartTokens(uint64_t token_count, uint32_t split_tokens);

// Room that a plan has behind the pages of a node that may grow.
inline constexpr uint32_t kSparePages = 4;

// The forest's nodes and sequences depth first. A node's sequences are
// [first_sequence[node], end_sequence[node]) of `sequences`.
struct DepthFirst {
  DepthFirst() = default;
  explicit DepthFirst(const PrefixForest& forest) { Assign(forest); }
  // Keeps the memory of the last one.
  void Assign(const PrefixForest& forest);
  std::span<const ForestSequence> Below(ForestNode node) const {
    return std::span(sequences).subspan(first_sequence[node],
                                        end_sequence[node] - first_sequence[node]);
  }
  std::vector<ForestNode> nodes;
  std::vector<ForestSequence> sequences;
  std::vector<uint32_t> first_sequence;  // by node
  std::vector<uint32_t> end_sequence;

 private:
  std::vector<ForestNode> stack_;
};

}  // namespace turnkeep
