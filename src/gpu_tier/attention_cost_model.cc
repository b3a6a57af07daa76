#include "gpu_tier/attention_cost_model.h"

#include <algorithm>
#include <functional>
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

void TaskSchedule::Clear() {
  tasks_.clear();
  total_ = longest_ = 0;
}

void TaskSchedule::Add(double nanoseconds, uint64_t count) {
  if (count == 0) return;
  tasks_.push_back({nanoseconds, count});
  total_ += nanoseconds * static_cast<double>(count);
  longest_ = std::max(longest_, nanoseconds);
}

double TaskSchedule::End() {
  constexpr double kNotable = 1.0 / 16;
  constexpr double kSlower = 0.1;
  if (longest_ <= kNotable * Balanced()) return Balanced() + kSlower * longest_;
  std::fill(busy_until_.begin(), busy_until_.end(), 0.0);
  const size_t threads = busy_until_.size();
  for (const Tasks& tasks : tasks_) {
    // Rounds that all threads take part in leave the heap's order.
    const uint64_t rounds = tasks.count / threads;
    for (double& end : busy_until_) end += tasks.nanoseconds * static_cast<double>(rounds);
    for (uint64_t i = rounds * threads; i < tasks.count; ++i) {
      std::pop_heap(busy_until_.begin(), busy_until_.end(), std::greater<>());
      busy_until_.back() += tasks.nanoseconds;
      std::push_heap(busy_until_.begin(), busy_until_.end(), std::greater<>());
    }
  }
  return *std::max_element(busy_until_.begin(), busy_until_.end()) + kSlower * longest_;
}

}  // namespace turnkeep
