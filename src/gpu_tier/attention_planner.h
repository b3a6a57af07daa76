// Planners: from the batch (prefix_forest.h) to a plan (kernels/attention.h). Each is named after
// the paper whose way of grouping it follows.
//
//   per_sequence   every sequence reads its whole path, one after another: paged flash decoding
//                  with split KV. The baseline.
//   two_phase      ChunkAttention, section 3: nodes that several sequences share are read once for
//                  all of them (chunk first), then each sequence's own (sequence first).
//   relay          RelayAttention, section 3: the system part of each tree once for all its
//                  queries, the rest of the context per request.
//   flatten_tree   DeFT, section 3: the trees laid out depth first and cut into equal blocks;
//                  every query of a block has a bit mask over its tokens.
//   auto           what costs least: chooses for every node whether it is read once or with what
//                  follows it, compares that with flatten_tree and with per_sequence.
//
// A planner belongs to one forest's life: it keeps its plan and, while the forest only grows by
// decode steps, patches it instead of planning again. two_phase also follows sequences that join
// and leave, and plans again only what they change. Not thread-safe.
//
//   auto planner = *MakeAttentionPlanner("auto", {.shape = shape});
//   attention.Run(shape, kv, planner->Plan(forest), tensors);
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "gpu_tier/prefix_forest.h"
#include "kernels/attention.h"

namespace turnkeep {

// What a plan takes, in nanoseconds of one thread, a unit those of one KV head. Defaults were
// measured on the machine of docs/kernels.md with float16 and head_dim 128; MeasureCpuCosts gives
// this machine's.
struct AttentionCosts {
  static constexpr uint32_t kTileTokens = 48;
  // A unit of so many query rows: with one token, with a tile of them, and each token more.
  struct Entry {
    uint32_t rows = 1;
    double one = 0;
    double tile = 0;
    double token = 0;
  };
  // Ascending by rows; what lies between two is between them. From many_rows rows on they are
  // counted in steps of row_step.
  std::vector<Entry> entries = {{1, 280, 1300, 22},     {2, 350, 1700, 30},
                                {4, 500, 2700, 49},     {8, 900, 4200, 78},
                                {16, 1500, 6800, 120},  {32, 2800, 12200, 215},
                                {64, 5400, 23500, 410}, {256, 21000, 92000, 1600}};
  uint32_t many_rows = 5;
  uint32_t row_step = 8;
  double partial = 60;    // merging a row's partial result
  double masked = 0.5;    // a row and token of a unit that has masks
  double planning = 150;  // a node or sequence that is put into a plan
};

struct AttentionPlannerOptions {
  AttentionShape shape;
  // Units are split until there are so many tasks (a unit and a KV head), as long as they keep
  // min_split_tokens.
  uint32_t target_tasks = 16;
  uint32_t min_split_tokens = 256;
  uint32_t block_tokens = 128;  // flatten_tree
  AttentionCosts costs;
};

class AttentionPlanner {
 public:
  virtual ~AttentionPlanner() = default;
  virtual std::string_view name() const = 0;
  // Valid until the next call. The forest must be the one of the last call, changed by its own
  // methods, or Forget must have been called.
  const AttentionPlan& Plan(const PrefixForest& forest);
  void Forget() { planned_ = false; }
  // How often a plan was made anew, partly made anew, and patched for growth alone.
  uint64_t plan_count() const { return plan_count_; }
  uint64_t replan_count() const { return replan_count_; }
  uint64_t patch_count() const { return patch_count_; }

 protected:
  enum class Followed { kNo, kReplanned, kPatched };
  explicit AttentionPlanner(const AttentionPlannerOptions& options) : options_(options) {}
  virtual void Build(const PrefixForest& forest, AttentionPlan* plan) = 0;
  // Brings the plan of the last Build or Follow up to date. kNo: it must be built.
  virtual Followed Follow(const PrefixForest& forest, AttentionPlan* plan);
  // After Build.
  virtual void Note(const PrefixForest& forest) { NoteLeaves(forest); }
  const AttentionPlannerOptions options_;

 private:
  // Follows growth of leaves that belong to one unit each; false if that is not so.
  bool Patch(const PrefixForest& forest);
  void NoteLeaves(const PrefixForest& forest);

  struct Leaf {
    ForestSequence sequence = 0;
    ForestNode node = 0;
    uint32_t token_count = 0;  // of the node, when planned
    uint32_t unit = 0;         // that ends with the node
    uint32_t page_room = 0;    // pages that the plan has room for
  };
  AttentionPlan plan_;
  std::vector<Leaf> leaves_;
  bool patchable_ = false;
  bool planned_ = false;
  uint64_t structure_version_ = 0;
  uint64_t growth_version_ = 0;
  uint64_t plan_count_ = 0;
  uint64_t replan_count_ = 0;
  uint64_t patch_count_ = 0;
};

// InvalidArgument lists the names there are, or names the shape's field.
absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    std::string_view name, const AttentionPlannerOptions& options);
std::vector<std::string_view> AttentionPlannerNames();

}  // namespace turnkeep
