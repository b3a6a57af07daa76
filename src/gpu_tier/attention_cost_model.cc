#include "gpu_tier/attention_cost_model.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace turnkeep {

namespace {

constexpr uint32_t kMostRows = 512;

// Between the entries on both sides; below the first and past the last in proportion to that one.
AttentionCosts::Entry Between(const std::vector<AttentionCosts::Entry>& entries, double rows) {
  const auto above = std::find_if(entries.begin(), entries.end(),
                                  [&](const auto& entry) { return entry.rows >= rows; });
  AttentionCosts::Entry entry = above == entries.end() ? entries.back() : *above;
  if (above == entries.begin() || above == entries.end()) {
    const double by = std::max(1.0, rows / entry.rows);
    return {entry.rows, entry.one * by, entry.tile * by, entry.token * by};
  }
  const AttentionCosts::Entry& below = *(above - 1);
  const double part = (rows - below.rows) / (entry.rows - below.rows);
  entry.one = below.one + part * (entry.one - below.one);
  entry.tile = below.tile + part * (entry.tile - below.tile);
  entry.token = below.token + part * (entry.token - below.token);
  return entry;
}

}  // namespace

AttentionCostModel::AttentionCostModel(const AttentionPlannerOptions& options) {
  const AttentionCosts& costs = options.costs;
  TK_CHECK(!costs.entries.empty() && costs.row_step > 0);
  const uint32_t group = options.shape.query_heads / options.shape.kv_heads;
  partial_ = costs.partial * group;
  masked_ = costs.masked * group;
  by_queries_.push_back({});
  least_ = std::numeric_limits<double>::max();
  for (uint32_t queries = 1; queries == 1 || queries * group <= kMostRows; ++queries) {
    uint32_t rows = queries * group;
    if (rows >= costs.many_rows)
      rows = (rows + costs.row_step - 1) / costs.row_step * costs.row_step;
    by_queries_.push_back(Between(costs.entries, rows));
    least_ = std::min(least_, by_queries_.back().token / queries);
  }
}

}  // namespace turnkeep
