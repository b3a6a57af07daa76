// What a unit of an attention plan is to the CPU kernels: addresses, visibility and where results
// go. Internal to src/kernels; plain code that is the same for every instruction set.
//
// Thread-compatible.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/attention.h"

namespace turnkeep {

// Tokens that are converted, scored and weighed together.
inline constexpr uint32_t kTileTokens = 48;  // a multiple of 6 and 16: the blocks of the kernels
// Query rows that one pass over a unit's KV serves.
inline constexpr uint32_t kRowsAtOnce = 256;
// Scores and maxima are to base 2.
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.69314718f;
// Below this the streaming kernel runs.
inline constexpr uint32_t kManyRows = 5;
// Up to here one block of rows runs.
inline constexpr uint32_t kEightRows = 8;

struct UnitTask {
  const AttentionShape* shape = nullptr;
  const PagedKv* kv = nullptr;
  const AttentionPlan* plan = nullptr;
  const AttentionTensors* tensors = nullptr;
  const AttentionPlan::Unit* unit = nullptr;
  uint32_t kv_head = 0;
  float* partial_output = nullptr;
  float* partial_lse = nullptr;
  float* scores = nullptr;   // of this unit and head; null: not kept
  bool apply = false;        // scores are given and weights made from them
  uint32_t seen_by_all = 0;  // tokens below this are seen by every query of the unit

  uint32_t group() const { return shape->query_heads / shape->kv_heads; }
  uint32_t row_count() const { return unit->query_count * group(); }

  // Row r of the unit is query r / group, head r % group of the KV head's.
  uint64_t TensorRow(uint32_t row) const {
    const uint64_t query = plan->queries[unit->first_query + row / group()];
    return query * shape->query_heads + kv_head * group() + row % group();
  }
  const std::byte* QueryOf(uint32_t row) const {
    return tensors->queries + TensorRow(row) * shape->head_dim * DTypeBytes(shape->dtype);
  }
  bool EverybodySees(uint32_t end) const { return end <= seen_by_all; }
  uint32_t CountSeenByAll() const {
    if (unit->first_mask != AttentionPlan::kNoMask || unit->query_count == 0) return 0;
    const uint32_t* const limits = &plan->limits[unit->first_query];
    return *std::min_element(limits, limits + unit->query_count);
  }
  // Of tokens [begin, end), at most a tile, those that query `query` of the unit does not see: bit
  // 0 is token `begin`.
  uint64_t Hidden(uint32_t query, uint32_t begin, uint32_t end) const {
    static_assert(kTileTokens < 64);
    const uint32_t count = end - begin;
    const uint32_t limit = std::max(plan->limits[unit->first_query + query], begin) - begin;
    uint64_t seen = limit >= 64 ? ~uint64_t{0} : (uint64_t{1} << limit) - 1;
    if (unit->first_mask != AttentionPlan::kNoMask) {
      const uint64_t words = AttentionPlan::MaskWords(unit->token_count);
      const uint64_t* const mask = &plan->masks[unit->first_mask + query * words + begin / 64];
      const uint32_t shift = begin % 64;
      uint64_t bits = mask[0] >> shift;
      if (shift + count > 64) bits |= mask[1] << (64 - shift);
      seen &= bits;
    }
    return ~seen & ((uint64_t{1} << count) - 1);
  }

  // Merged log-sum-exps of rows to base 2, for ApplyWeights; those that see nothing get no weight.
  void LoadLse(uint32_t first_row, uint32_t row_count, uint32_t padded, float* lse) const {
    std::fill(lse, lse + padded, std::numeric_limits<float>::infinity());
    for (uint32_t r = 0; r < row_count; ++r) {
      const float value = tensors->lse[TensorRow(first_row + r)];
      if (std::isfinite(value)) lse[r] = value * kLog2E;
    }
  }

  // Normalises and stores a row's result.
  void WriteRow(uint32_t row, const float* values, float max, float sum) const {
    const uint32_t partial = plan->partials[unit->first_query + row / group()];
    uint64_t at = TensorRow(row);
    float* output = tensors->output;
    float* lse = tensors->lse;
    if (partial != AttentionPlan::kDirect) {
      at = uint64_t{partial} * shape->query_heads + kv_head * group() + row % group();
      output = partial_output;
      lse = partial_lse;
    }
    const float factor = apply ? 1.0f : sum > 0 ? 1.0f / sum : 0.0f;
    float* const to = output + at * shape->head_dim;
    for (uint32_t j = 0; j < shape->head_dim; ++j) to[j] = values[j] * factor;
    if (apply) return;
    lse[at] = sum > 0 ? max * kLn2 + std::log(sum) : -std::numeric_limits<float>::infinity();
  }
};

// Walks over a unit's tokens by runs that lie in one page.
class TokenCursor {
 public:
  TokenCursor(const UnitTask& task, uint32_t token)
      : plan_(*task.plan),
        segment_(&task.plan->segments[task.unit->first_segment]),
        page_tokens_(task.shape->page_tokens) {
    while (token >= segment_->token_count && token > 0) token -= (segment_++)->token_count;
    Enter(token);
  }

  uint32_t page() const { return page_; }
  uint32_t offset_in_page() const { return offset_; }
  // Tokens from here on in this page and segment.
  uint32_t RunLength() const {
    return std::min(page_tokens_ - offset_, segment_->token_count - done_);
  }
  // By at most RunLength(). At the end of the unit it must not be used again.
  void Advance(uint32_t tokens) {
    done_ += tokens;
    if (done_ < segment_->token_count) return Enter(done_);
    const AttentionPlan::Segment* const end = plan_.segments.data() + plan_.segments.size();
    do {
      if (++segment_ == end) return;
    } while (segment_->token_count == 0);
    Enter(0);
  }

 private:
  void Enter(uint32_t token) {
    done_ = token;
    const uint32_t at = segment_->offset + token;
    if (segment_->token_count == 0) return;
    page_ = plan_.pages[segment_->first_page + at / page_tokens_];
    offset_ = at % page_tokens_;
  }

  const AttentionPlan& plan_;
  const AttentionPlan::Segment* segment_;
  const uint32_t page_tokens_;
  uint32_t done_ = 0;  // tokens of the segment before here
  uint32_t page_ = 0;
  uint32_t offset_ = 0;
};

// One worker's memory for a pass of up to kRowsAtOnce rows over a unit. Everything is padded to
// whole vectors of `lanes` rows.
struct RowScratch {
  static constexpr uint32_t kMaxLanes = 16;
  static constexpr uint32_t kMaxRows = kRowsAtOnce + 2 * kMaxLanes;

  static constexpr size_t kAlignment = 64 / sizeof(float);

  static constexpr size_t kStripFloats = 2 * kTileTokens * kMaxLanes;

  static size_t FloatsFor(uint32_t dim) {
    return 2 * kMaxRows * dim + kTileTokens * (dim + kMaxRows) + 2 * kMaxRows + kStripFloats +
           kAlignment;
  }

  RowScratch(float* memory, uint32_t base, uint32_t count, size_t lanes, size_t dim)
      : base(base),
        count(count),
        padded(static_cast<uint32_t>((count + lanes - 1) / lanes * lanes)),
        queries(Aligned(memory)),
        output(queries + kMaxRows * dim),
        keys(output + kMaxRows * dim),
        scores(keys + kTileTokens * dim),
        strip(scores + kTileTokens * kMaxRows),
        max(strip + kStripFloats),
        sum(max + kMaxRows) {}

  // To a cache line: every other vector would lie in two of them.
  static float* Aligned(float* memory) {
    constexpr uintptr_t kLine = kAlignment * sizeof(float);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory) + kLine - 1) &
                                    ~(kLine - 1));
  }

  uint32_t base;    // first row of the pass
  uint32_t count;   // rows
  uint32_t padded;  // rows with padding
  float* queries;   // [blocks of 2 vectors of rows][dim][rows]
  float* output;    // [rows][dim]
  float* keys;      // [kTileTokens][dim]
  float* scores;    // [blocks of 2 vectors of rows][kTileTokens][rows]
  float* strip;     // [kTileTokens][2 vectors]
  float* max;
  float* sum;
};

// Floats that the scores of one unit and KV head take.
inline uint64_t ScoresOf(const AttentionPlan::Unit& unit, uint32_t group, size_t lanes) {
  const uint64_t rows = uint64_t{unit.query_count} * group;
  if (rows < kManyRows) return rows * unit.token_count;
  if (rows <= kEightRows) return uint64_t{kEightRows} * unit.token_count;
  uint64_t padded = rows / kRowsAtOnce * kRowsAtOnce;
  padded += (rows % kRowsAtOnce + lanes - 1) / lanes * lanes;
  return padded * unit.token_count;
}

// The row's result from its partials.
void MergeRow(const AttentionShape& shape, const AttentionPlan& plan, uint32_t row,
              const float* partial_output, const float* partial_lse,
              const AttentionTensors& tensors);
// The same where the partials' weights are those of the whole already.
void AddRow(const AttentionShape& shape, const AttentionPlan& plan, uint32_t row,
            const float* partial_output, const AttentionTensors& tensors);

}  // namespace turnkeep
