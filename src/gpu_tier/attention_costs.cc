#include "gpu_tier/attention_costs.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "kernels/attention_cpu.h"

namespace turnkeep {

namespace {

// One KV head with as many query heads as a group has, and pages enough not to sit in a core's own
// caches.
class Probe {
 public:
  static constexpr uint32_t kTokens = 8192;

  Probe(const AttentionShape& shape, ThreadPool& pool) : shape_(shape), attention_(&pool) {
    threads_ = pool.thread_count();
    shape_.query_heads /= shape.kv_heads;
    shape_.kv_heads = 1;
    shape_.page_tokens = 16;
    const uint64_t bytes = uint64_t{kTokens} * shape_.head_dim * DTypeBytes(shape_.dtype);
    keys_.resize(bytes);
    values_.resize(bytes);
  }

  // Nanoseconds of one thread for `units` units of `tokens` tokens with `queries` queries each,
  // which are merged if `merged`.
  double Run(uint32_t units, uint32_t tokens, uint32_t queries, bool merged = false) {
    AttentionPlan plan;
    plan.row_count = merged ? queries : units * queries;
    for (uint32_t p = 0; p < kTokens / 16; ++p) plan.pages.push_back(p);
    plan.merge_begin.assign(plan.row_count + 1, 0);
    for (uint32_t u = 0; u < units; ++u) {
      const uint32_t first_page = uint64_t{u} * tokens / 16 % (kTokens / 16 - tokens / 16);
      plan.segments.push_back({.first_page = first_page, .token_count = tokens});
      plan.units.push_back({.first_segment = u,
                            .segment_count = 1,
                            .token_count = tokens,
                            .first_query = u * queries,
                            .query_count = queries});
      for (uint32_t q = 0; q < queries; ++q) {
        plan.queries.push_back(merged ? q : u * queries + q);
        plan.limits.push_back(tokens);
        plan.partials.push_back(merged ? q * units + u : AttentionPlan::kDirect);
      }
    }
    if (merged) {
      plan.partial_count = units * queries;
      for (uint32_t i = 0; i < plan.partial_count; ++i) plan.merge_list.push_back(i);
      for (uint32_t q = 0; q <= queries; ++q) plan.merge_begin[q] = q * units;
    }
    const uint64_t rows = uint64_t{plan.row_count} * shape_.query_heads;
    queries_.resize(rows * shape_.head_dim * DTypeBytes(shape_.dtype));
    output_.resize(rows * shape_.head_dim);
    lse_.resize(rows);
    const auto begin = std::chrono::steady_clock::now();
    attention_.Run(shape_, PagedKv::Dense(shape_, keys_.data(), values_.data()), plan,
                   {queries_.data(), output_.data(), lse_.data()});
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    return took.count() * std::min(threads_, units);
  }

  uint32_t group() const { return shape_.query_heads; }

 private:
  AttentionShape shape_;
  CpuAttention attention_;
  uint32_t threads_ = 1;
  std::vector<std::byte> keys_, values_, queries_;
  std::vector<float> output_, lse_;
};

}  // namespace

AttentionCosts MeasureCpuCosts(const AttentionShape& shape, ThreadPool& pool) {
  Probe probe(shape, pool);
  AttentionCosts costs;
  constexpr uint32_t kUnits = 16;
  constexpr uint32_t kTokens = 512;
  const uint32_t group = probe.group();
  const uint32_t some = std::max(1u, 16 / group);
  const uint32_t most = std::max(1u, (costs.many_rows - 1) / group);
  const uint32_t low = (costs.row_step + group - 1) / group;
  struct Sample {
    uint32_t units, tokens, queries;
    bool merged = false;
    double best = std::numeric_limits<double>::max();
  };
  Sample one_token{256, 1, 1}, one_token_some{256, 1, 1 + some}, one{kUnits, kTokens, 1},
      few{kUnits, kTokens, most}, narrow{kUnits, kTokens, low}, wide{kUnits, kTokens, 4 * low},
      apart{64, 1, 8}, merged{64, 1, 8, true};
  // In turns, so that what disturbs the machine for a while disturbs one round of all.
  for (int round = 0; round < 5; ++round) {
    for (Sample* s : {&one_token, &one_token_some, &one, &few, &narrow, &wide, &apart, &merged})
      s->best = std::min(s->best, probe.Run(s->units, s->tokens, s->queries, s->merged));
  }
  const auto token = [](const Sample& s) { return s.best / (s.units * s.tokens); };
  const double small = one_token.best / one_token.units;
  costs.unit_row =
      std::max(0.0, (one_token_some.best / one_token_some.units - small) / (some * group));
  costs.unit = std::max(0.0, small - costs.unit_row * group);
  if (group < costs.many_rows) {
    costs.row_few =
        most > 1 ? std::max(0.0, (token(few) - token(one)) / ((most - 1) * group)) : token(one) / 2;
    costs.token_few = std::max(0.0, token(one) - costs.row_few * group);
  }
  // From one step of rows to four.
  const auto padded = [&](uint32_t queries) {
    return (queries * group + costs.row_step - 1) / costs.row_step * costs.row_step;
  };
  costs.row_many = std::max(0.1, (token(wide) - token(narrow)) / (padded(4 * low) - padded(low)));
  costs.token_many = std::max(0.0, token(narrow) - costs.row_many * padded(low));
  costs.partial = std::max(1.0, (merged.best - apart.best) / (64 * 8 * group));
  return costs;
}

}  // namespace turnkeep
