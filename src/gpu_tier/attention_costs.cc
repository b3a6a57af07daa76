#include "gpu_tier/attention_costs.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "core/check.h"
#include "gpu_tier/prefix_forest.h"
#include "kernels/attention_cpu.h"

namespace turnkeep {

namespace {

// One KV head with some query heads, and pages enough not to sit in a core's own caches.
class Probe {
 public:
  static constexpr uint32_t kTokens = 8192;

  Probe(const AttentionShape& shape, uint32_t query_heads, ThreadPool& pool)
      : shape_(shape), attention_(&pool) {
    threads_ = pool.thread_count();
    shape_.query_heads = query_heads;
    shape_.kv_heads = 1;
    shape_.page_tokens = 16;
    const uint64_t bytes = uint64_t{kTokens} * shape_.head_dim * DTypeBytes(shape_.dtype);
    keys_.resize(bytes);
    values_.resize(bytes);
  }

  // Nanoseconds of one thread for `units` units of `tokens` tokens with `queries` queries each:
  // results of their own, merged to one row a query, or with masks that hide every other token.
  enum class Kind { kApart, kMerged, kMasked };
  double Run(uint32_t units, uint32_t tokens, uint32_t queries, Kind kind) {
    const bool merged = kind == Kind::kMerged;
    AttentionPlan& plan = plan_;
    plan.Clear();
    plan.row_count = merged ? queries : units * queries;
    for (uint32_t p = 0; p < kTokens / 16; ++p) plan.pages.push_back(p);
    plan.merge_begin.assign(plan.row_count + 1, 0);
    const uint64_t words = AttentionPlan::MaskWords(tokens);
    if (kind == Kind::kMasked) plan.masks.assign(units * queries * words, 0x5555555555555555u);
    for (uint32_t u = 0; u < units; ++u) {
      const uint32_t first_page = uint64_t{u} * tokens / 16 % (kTokens / 16 - tokens / 16);
      plan.segments.push_back({.first_page = first_page, .token_count = tokens});
      plan.units.push_back(
          {.first_segment = u,
           .segment_count = 1,
           .token_count = tokens,
           .first_query = u * queries,
           .query_count = queries,
           .first_mask = kind == Kind::kMasked ? u * queries * words : AttentionPlan::kNoMask});
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
    queries_.resize(
        std::max<size_t>(queries_.size(), rows * shape_.head_dim * DTypeBytes(shape_.dtype)));
    output_.resize(std::max<size_t>(output_.size(), rows * shape_.head_dim));
    lse_.resize(std::max<size_t>(lse_.size(), rows));
    const auto begin = std::chrono::steady_clock::now();
    attention_.Run(shape_, PagedKv::Dense(shape_, keys_.data(), values_.data()), plan,
                   {queries_.data(), output_.data(), lse_.data()});
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    return took.count() * std::min(threads_, units);
  }

  uint32_t query_heads() const { return shape_.query_heads; }
  uint32_t head_dim() const { return shape_.head_dim; }
  uint32_t threads() const { return threads_; }

 private:
  AttentionShape shape_;
  CpuAttention attention_;
  uint32_t threads_ = 1;
  AttentionPlan plan_;
  std::vector<std::byte> keys_, values_, queries_;
  std::vector<float> output_, lse_;
};

struct Sample {
  uint32_t units = 0;
  uint32_t tokens = 0;
  uint32_t queries = 0;
  Probe::Kind kind = Probe::Kind::kApart;
  std::vector<double> took;  // one a round, over the yardstick beside it
  double best = 0;           // their median times the least yardstick
  double OfUnit() const { return best / units; }
};

// Samples of one entry: units of one token, of a tile, and of some tiles.
struct EntrySamples {
  uint32_t rows = 0;
  Sample one, tile, tiles;
};

std::vector<EntrySamples> SamplesOf(const Probe& probe) {
  constexpr uint32_t kRows[] = {1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
  constexpr uint32_t kTile = AttentionCosts::kTileTokens;
  std::vector<EntrySamples> entries;
  for (const uint32_t rows : kRows) {
    // About a tenth of a millisecond a thread each, and a unit for each thread at least.
    const uint64_t row_tokens = 1'000'000 / (probe.head_dim() * uint64_t{rows} / 8 + 32);
    const auto units = [&](uint64_t tokens) {
      return probe.threads() *
             static_cast<uint32_t>(std::clamp<uint64_t>(row_tokens / (8 * tokens), 1, 64));
    };
    const uint32_t tiles = kTile * (rows > 64 ? 3 : 10);
    entries.push_back({.rows = rows,
                       .one = {units(kTile / 4), 1, rows},
                       .tile = {units(kTile), kTile, rows},
                       .tiles = {units(tiles), tiles, rows}});
  }
  return entries;
}

// In turns, so that what disturbs the machine for a while disturbs one round of all; and what slows
// it down for longer (a neighbour on the same core) shows in the yardstick as well, so that entries
// that were measured before and after still compare.
void MeasureSamples(Probe& probe, const std::vector<Sample*>& samples) {
  constexpr int kRounds = 8;
  const uint32_t queries = (16 + probe.query_heads() - 1) / probe.query_heads();
  const uint32_t tiles = std::max(1u, 128 / (queries * probe.query_heads()));
  const Sample yardstick{probe.threads(), tiles * AttentionCosts::kTileTokens, queries};
  double least = std::numeric_limits<double>::max();
  for (int round = 0; round < kRounds; ++round) {
    for (Sample* s : samples) {
      const double beside =
          probe.Run(yardstick.units, yardstick.tokens, yardstick.queries, yardstick.kind);
      s->took.push_back(probe.Run(s->units, s->tokens, s->queries, s->kind) / beside);
      least = std::min(least, beside);
    }
  }
  for (Sample* s : samples) {
    std::nth_element(s->took.begin(), s->took.begin() + kRounds / 2, s->took.end());
    s->best = s->took[kRounds / 2] * least;
  }
}

// Above one step of rows the same kernel runs, in proportion to the rows but for what it does once
// a token or unit: the line through the entries' values by the medians of slopes and offsets (Theil
// and Sen), so that an entry that was disturbed in most rounds does not decide what is shared.
void OnALine(AttentionCosts& costs, double AttentionCosts::Entry::*value) {
  std::vector<AttentionCosts::Entry>& entries = costs.entries;
  const auto first = std::find_if(entries.begin(), entries.end(),
                                  [&](const auto& entry) { return entry.rows > costs.row_step; });
  if (entries.end() - first < 3) return;
  const auto median = [](std::vector<double>& of) {
    std::nth_element(of.begin(), of.begin() + of.size() / 2, of.end());
    return of[of.size() / 2];
  };
  std::vector<double> slopes, offsets;
  for (auto a = first; a != entries.end(); ++a) {
    for (auto b = a + 1; b != entries.end(); ++b)
      slopes.push_back(((*b).*value - (*a).*value) / (b->rows - a->rows));
  }
  const double slope = median(slopes);
  if (slope <= 0) return;
  // What a token takes once, its conversion, is about three rows' work; more is a disturbance that
  // would make sharing look good where a sequence has many rows already.
  constexpr double kMostOnce = 4;
  for (auto a = first; a != entries.end(); ++a) offsets.push_back((*a).*value - slope * a->rows);
  const double offset = std::clamp(median(offsets), 0.0, kMostOnce * slope);
  for (auto a = first; a != entries.end(); ++a) (*a).*value = offset + slope * a->rows;
}

// Nanoseconds that a plan takes to make, a node or sequence.
double MeasurePlanning(const AttentionShape& shape) {
  constexpr uint32_t kLeaves = 48;
  PrefixForest forest(shape.page_tokens);
  const std::vector<uint32_t> pages(64);
  const auto root = forest.AddNode(kNoForestNode, pages, 16);
  for (uint32_t i = 0; i < kLeaves; ++i) {
    const auto leaf = forest.AddNode(*root, pages, 16);
    TK_CHECK(leaf.ok() && forest.AddSequence(*leaf).ok());
  }
  const auto planner = *MakeAttentionPlanner("relay", {.shape = shape});
  double best = std::numeric_limits<double>::max();
  for (int round = 0; round < 8; ++round) {
    planner->Forget();
    const auto begin = std::chrono::steady_clock::now();
    planner->Plan(forest);
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best / (2 * kLeaves + 1);
}

}  // namespace

AttentionCosts MeasureCpuCosts(const AttentionShape& shape, ThreadPool& pool) {
  using Kind = Probe::Kind;
  AttentionCosts costs;
  // A kernel does not care which of its rows are heads of one query: with one head there are
  // entries for every number of rows, whatever the group.
  Probe rows(shape, 1, pool);
  std::vector<EntrySamples> entries = SamplesOf(rows);
  Sample seen{16, 96, 16}, masked{16, 96, 16, Kind::kMasked};
  std::vector<Sample*> samples = {&seen, &masked};
  for (EntrySamples& entry : entries)
    for (Sample* sample : {&entry.one, &entry.tile, &entry.tiles}) samples.push_back(sample);
  MeasureSamples(rows, samples);
  // Merging goes by query.
  const uint32_t group = shape.query_heads / shape.kv_heads;
  Probe queries(shape, group, pool);
  Sample apart{64, 1, 8}, merged{64, 1, 8, Kind::kMerged};
  MeasureSamples(queries, {&apart, &merged});
  costs.entries.clear();
  for (const EntrySamples& entry : entries) {
    const double tile = entry.tile.OfUnit();
    const double token = std::max(
        0.1, (entry.tiles.OfUnit() - tile) / (entry.tiles.tokens - AttentionCosts::kTileTokens));
    costs.entries.push_back({entry.rows, entry.one.OfUnit(), tile, token});
  }
  for (const auto value :
       {&AttentionCosts::Entry::one, &AttentionCosts::Entry::tile, &AttentionCosts::Entry::token})
    OnALine(costs, value);
  for (AttentionCosts::Entry& entry : costs.entries) entry.one = std::min(entry.one, entry.tile);
  costs.partial = std::max(1.0, (merged.best - apart.best) / (64 * 8 * group));
  costs.masked = std::max(0.05, (masked.OfUnit() - seen.OfUnit()) / (96.0 * 16));
  costs.planning = MeasurePlanning(shape);
  return costs;
}

}  // namespace turnkeep
