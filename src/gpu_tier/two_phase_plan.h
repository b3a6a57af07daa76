// The plan of ChunkAttention's two phases (arXiv 2402.15220, section 3), kept while the forest
// changes: as the paper's prefix tree and kernel context are, which change only where a sequence
// joins, leaves or outgrows its chunk.
//
// The plan consists of items: a node that several sequences share (chunk first), or what is a
// sequence's own (sequence first). An item is one unit, or several where it is split. Joining,
// leaving and growing mark items; those are made again, the others stay as they are. Ranges that an
// item gave up stay unused in the plan's arrays until they are half of it; then all is made anew.
// After any change the plan does the same work as one made anew, with the same results bit for bit.
//
// Costs: a growing leaf O(1), amortised; a sequence that joins or leaves its own pages, its path,
// and 4 to 16 bytes for each row of the batch and node on its path, because rows are renumbered.
//
// Not thread-safe. Internal to src/gpu_tier.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu_tier/attention_planner.h"
#include "gpu_tier/plan_builder.h"
#include "gpu_tier/prefix_forest.h"

namespace turnkeep {

class TwoPhasePlan {
 public:
  explicit TwoPhasePlan(const AttentionPlannerOptions& options) : options_(options) {}

  void Build(const PrefixForest& forest, AttentionPlan* plan);
  // False if it must be built: the forest has forgotten what changed, or half of the plan's arrays
  // is unused. `replanned` tells whether more was done than to follow growth within units.
  bool Follow(const PrefixForest& forest, AttentionPlan* plan, bool* replanned);

 private:
  // What is to be done to an item.
  enum class Mark : uint8_t { kNothing, kGrown, kRows, kAll };
  struct Item {
    std::vector<uint32_t> units;  // in the order of their tokens
    uint32_t token_count = 0;     // planned
    uint32_t next_tokens = 0;     // to be planned
    uint32_t part_tokens = 0;     // a unit, the last one less
    uint32_t row_room = 0;        // of each unit
    uint32_t page_room = 0;       // behind the last segment's pages
    Mark mark = Mark::kNothing;
  };
  struct Step {
    ForestNode node = kNoForestNode;
    uint32_t first_row = 0;  // in the node's units
  };
  struct Member {
    std::vector<Step> path;  // from the root; empty: not in the plan
    uint32_t query_tokens = 0;
    Item own;
  };
  struct Node {
    std::vector<ForestSequence> below;
    uint32_t depth = 0;
    uint32_t token_count = 0;  // noted
    Item item;
  };
  // Items by number: a node's is even, a sequence's own odd.
  static uint32_t OfNode(ForestNode node) { return 2 * node; }
  static uint32_t OfSequence(ForestSequence sequence) { return 2 * sequence + 1; }
  struct Owner {
    uint32_t item = 0;
    uint32_t part = 0;
  };

  Item& ItemAt(uint32_t id) { return id % 2 == 0 ? nodes_[id / 2].item : members_[id / 2].own; }
  std::span<const ForestSequence> SequencesOf(uint32_t id) const;
  void MarkItem(uint32_t id, Mark mark);
  void MarkEverything();

  void Attach(const PrefixForest& forest, ForestSequence sequence);
  void Detach(ForestSequence sequence);
  void Grow(const PrefixForest& forest, ForestNode node);

  // Carries out what is marked; returns whether anything but growth within units was.
  bool Commit(const PrefixForest& forest, bool rows_moved);
  uint32_t TokensOf(const PrefixForest& forest, uint32_t id) const;
  void CollectPieces(const PrefixForest& forest, uint32_t id);
  bool GrowInPlace(const PrefixForest& forest, uint32_t id);
  void Drop(Item& item);
  void Emit(const PrefixForest& forest, uint32_t id);
  void AddSegment(const PrefixForest& forest, const NodePiece& piece, Item& item);
  void WriteRows(const PrefixForest& forest, uint32_t id);
  void LinkRows(const PrefixForest& forest);
  uint64_t HeldWords() const {
    return plan_->queries.size() + plan_->segments.size() + plan_->pages.size();
  }

  const AttentionPlannerOptions& options_;
  AttentionPlan* plan_ = nullptr;  // of the running call
  std::vector<Member> members_;    // by ForestSequence
  std::vector<Node> nodes_;        // by ForestNode
  std::vector<Owner> owners_;      // of units
  std::vector<uint32_t> marked_;
  std::vector<NodePiece> pieces_;  // of the item that is being made
  uint64_t token_count_ = 0;       // of all items
  uint64_t item_count_ = 0;        // with tokens
  uint32_t split_tokens_ = 0;
  uint64_t unused_words_ = 0;
  uint64_t seen_changes_ = 0;
};

}  // namespace turnkeep
