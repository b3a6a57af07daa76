// The planners behind MakeAttentionPlanner. Internal to src/gpu_tier.
#pragma once

#include <memory>

#include "gpu_tier/attention_planner.h"
#include "gpu_tier/plan_builder.h"

namespace turnkeep {

std::unique_ptr<AttentionPlanner> MakePerSequencePlanner(const AttentionPlannerOptions& options);
std::unique_ptr<AttentionPlanner> MakeTwoPhasePlanner(const AttentionPlannerOptions& options);
std::unique_ptr<AttentionPlanner> MakeRelayPlanner(const AttentionPlannerOptions& options);
std::unique_ptr<AttentionPlanner> MakeFlattenTreePlanner(const AttentionPlannerOptions& options);
std::unique_ptr<AttentionPlanner> MakeAutoPlanner(const AttentionPlannerOptions& options);

// One planner's way, for those that choose among several.
void PlanPerSequence(const PrefixForest& forest, const AttentionPlannerOptions& options,
                     AttentionPlan* plan);
void PlanFlattenTree(const PrefixForest& forest, const DepthFirst& order,
                     const AttentionPlannerOptions& options, AttentionPlan* plan);

}  // namespace turnkeep
