#include "gpu_tier/attention_planner.h"

#include <algorithm>

#include "core/status.h"
#include "gpu_tier/attention_planners.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {

const AttentionPlan& AttentionPlanner::Plan(const PrefixForest& forest) {
  const bool same_structure = planned_ && structure_version_ == forest.structure_version();
  if (same_structure && growth_version_ == forest.growth_version()) return plan_;
  const Followed followed = planned_ ? Follow(forest, &plan_) : Followed::kNo;
  if (followed == Followed::kNo) {
    Build(forest, &plan_);
    Note(forest);
    planned_ = true;
    ++plan_count_;
  }
  replan_count_ += followed == Followed::kReplanned ? 1 : 0;
  patch_count_ += followed == Followed::kPatched ? 1 : 0;
  structure_version_ = forest.structure_version();
  growth_version_ = forest.growth_version();
  return plan_;
}

AttentionPlanner::Followed AttentionPlanner::Follow(const PrefixForest& forest,
                                                    AttentionPlan* /*plan*/) {
  if (structure_version_ != forest.structure_version() || !patchable_ || !Patch(forest))
    return Followed::kNo;
  return Followed::kPatched;
}

// Decode steps can be followed where every sequence has one query and a unit without a mask, of its
// own, that ends with its leaf's last token.
void AttentionPlanner::NoteLeaves(const PrefixForest& forest) {
  leaves_.clear();
  patchable_ = false;
  constexpr uint32_t kNone = 0xFFFFFFFFu;
  std::vector<uint32_t> last_unit(plan_.row_count, kNone);
  for (uint32_t u = 0; u < plan_.units.size(); ++u) {
    const AttentionPlan::Unit& unit = plan_.units[u];
    const bool own = unit.query_count == 1 && unit.first_mask == AttentionPlan::kNoMask;
    for (uint32_t q = 0; q < unit.query_count && unit.token_count > 0; ++q)
      last_unit[plan_.queries[unit.first_query + q]] = own ? u : kNone;
  }
  for (ForestSequence s = 0; s < forest.sequences().size(); ++s) {
    const PrefixForest::Sequence& sequence = forest.sequences()[s];
    if (sequence.query_tokens == 0) continue;
    const PrefixForest::Node& leaf = forest.nodes()[sequence.leaf];
    const uint32_t unit = last_unit[sequence.first_row];
    if (sequence.query_tokens != 1 || !leaf.children.empty() || leaf.sequences.size() != 1 ||
        leaf.token_count == 0 || unit == kNone) {
      return;
    }
    leaves_.push_back({s, sequence.leaf, leaf.token_count, unit, kSparePages});
  }
  patchable_ = true;
}

bool AttentionPlanner::Patch(const PrefixForest& forest) {
  const uint32_t page_tokens = forest.page_tokens();
  const auto pages_of = [&](uint32_t tokens) { return (tokens + page_tokens - 1) / page_tokens; };
  for (const Leaf& leaf : leaves_) {
    const uint32_t now = forest.nodes()[leaf.node].token_count;
    if (pages_of(now) - pages_of(leaf.token_count) > leaf.page_room) return false;
  }
  for (Leaf& leaf : leaves_) {
    const PrefixForest::Node& node = forest.nodes()[leaf.node];
    const uint32_t grown = node.token_count - leaf.token_count;
    if (grown == 0) continue;
    AttentionPlan::Unit& unit = plan_.units[leaf.unit];
    AttentionPlan::Segment& segment = plan_.segments[unit.first_segment + unit.segment_count - 1];
    // The segment ends with the node's last planned token.
    const uint32_t before = pages_of(leaf.token_count);
    const uint32_t after = pages_of(node.token_count);
    const uint32_t held = pages_of(segment.offset + segment.token_count);
    std::copy(node.pages.begin() + before, node.pages.begin() + after,
              plan_.pages.begin() + segment.first_page + held);
    leaf.page_room -= after - before;
    segment.token_count += grown;
    unit.token_count += grown;
    plan_.limits[unit.first_query] += grown;
    leaf.token_count = node.token_count;
  }
  return true;
}

namespace {

using Make = std::unique_ptr<AttentionPlanner> (*)(const AttentionPlannerOptions&);
struct Entry {
  std::string_view name;
  Make make;
};
constexpr Entry kPlanners[] = {{"per_sequence", MakePerSequencePlanner},
                               {"two_phase", MakeTwoPhasePlanner},
                               {"relay", MakeRelayPlanner},
                               {"flatten_tree", MakeFlattenTreePlanner},
                               {"auto", MakeAutoPlanner}};

}  // namespace

std::vector<std::string_view> AttentionPlannerNames() {
  std::vector<std::string_view> names;
  for (const Entry& entry : kPlanners) names.push_back(entry.name);
  return names;
}

absl::StatusOr<std::unique_ptr<AttentionPlanner>> MakeAttentionPlanner(
    std::string_view name, const AttentionPlannerOptions& options) {
  TK_RETURN_IF_ERROR(ValidateAttentionShape(options.shape));
  if (options.target_tasks == 0) return InvalidArgument("planner: target_tasks is 0");
  if (options.min_split_tokens == 0) return InvalidArgument("planner: min_split_tokens is 0");
  if (options.block_tokens == 0) return InvalidArgument("planner: block_tokens is 0");
  for (const Entry& entry : kPlanners)
    if (entry.name == name) return entry.make(options);
  return InvalidArgument("planner: '{}' is none of {}", std::string(name),
                         fmt::join(AttentionPlannerNames(), ", "));
}

}  // namespace turnkeep
