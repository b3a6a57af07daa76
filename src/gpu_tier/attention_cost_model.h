// What a plan's units take, from AttentionCosts, for the auto planner. Internal to src/gpu_tier.
//
// Thread-compatible.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu_tier/attention_planner.h"
#include "kernels/attention.h"

namespace turnkeep {

// All in nanoseconds of one thread and one KV head.
class AttentionCostModel {
 public:
  explicit AttentionCostModel(const AttentionPlannerOptions& options);

  double Unit(uint64_t tokens, uint64_t queries) const {
    const AttentionCosts::Entry entry = At(queries);
    const auto n = static_cast<double>(tokens);
    if (tokens >= AttentionCosts::kTileTokens)
      return entry.tile + entry.token * (n - AttentionCosts::kTileTokens);
    return entry.one + (entry.tile - entry.one) * (n - 1) / (AttentionCosts::kTileTokens - 1);
  }
  // Of one more token.
  double Token(uint64_t queries) const { return At(queries).token; }
  // Merging so many partial results of queries.
  double Partials(uint64_t queries) const { return partial_ * static_cast<double>(queries); }
  // What masks add to a unit.
  double Masks(uint64_t tokens, uint64_t queries) const {
    return masked_ * static_cast<double>(tokens) * static_cast<double>(queries);
  }
  // The least that a query takes for a token, whoever reads it with it.
  double LeastOfQuery() const { return least_; }

 private:
  AttentionCosts::Entry At(uint64_t queries) const {
    if (queries < by_queries_.size()) return by_queries_[queries];
    return Scaled(by_queries_.back(),
                  static_cast<double>(queries) / static_cast<double>(by_queries_.size() - 1));
  }
  static AttentionCosts::Entry Scaled(AttentionCosts::Entry entry, double by) {
    entry.one *= by;
    entry.tile *= by;
    entry.token *= by;
    return entry;
  }

  std::vector<AttentionCosts::Entry> by_queries_;
  double partial_ = 0;
  double masked_ = 0;
  double least_ = 0;
};

// When the threads are done with tasks that they take one after another, as the executor's do.
class TaskSchedule {
 public:
  explicit TaskSchedule(uint32_t threads) : busy_until_(threads) {}
  void Clear();
  // `count` tasks of `nanoseconds` each.
  void Add(double nanoseconds, uint64_t count);
  // A thread may be slower than the others by a tenth: the longest task is taken to be waited for.
  // O(tasks · log threads), or O(1) where no task is a notable part of a thread's work.
  double End();
  // The end if all threads were done at once.
  double Balanced() const { return total_ / static_cast<double>(busy_until_.size()); }

 private:
  struct Tasks {
    double nanoseconds;
    uint64_t count;
  };
  std::vector<Tasks> tasks_;
  std::vector<double> busy_until_;  // of End; the heap's first is the thread that is free first
  double total_ = 0;
  double longest_ = 0;
};

}  // namespace turnkeep
