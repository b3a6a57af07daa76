// Attention over paged KV: one plan, one executor (attention_cpu.h; the CUDA one takes the same
// plan).
//
// For query i, head h of group size g = query_heads / kv_heads, over the tokens t it sees:
//   s_t = scale · q · k_t,   lse = ln Σ_t e^{s_t},   o = Σ_t e^{s_t - lse} · v_t
//
// A plan says which queries read which KV: a unit is a run of KV tokens and the queries that see
// it, and gives one partial result (o, lse) for each of those. A query with several partials is
// merged from them:
//   lse = ln Σ_p e^{lse_p},   o = Σ_p e^{lse_p - lse} · o_p
// So prefix sharing, split KV, relay and trees differ in their plans only (gpu_tier/attention
// planners). A part in which a query sees nothing has o = 0 and lse = -inf and changes nothing; a
// query that sees nothing at all gets just that.
//
// A plan is flat arrays of 32- and 64-bit words, so that it is uploaded as it stands. Results are
// the same for every thread count and every run of one plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <absl/status/status.h>

#include "core/layout.h"

namespace turnkeep {

struct AttentionShape {
  uint32_t query_heads = 0;  // a multiple of kv_heads, at most 64 times as many
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;          // a multiple of 8, at most kMaxAttentionHeadDim
  uint32_t page_tokens = 0;       // 1..256
  DType dtype = DType::kFloat16;  // of queries and KV: float32, float16 or bfloat16
  float scale = 0;                // mostly 1 / sqrt(head_dim)
};
inline constexpr uint32_t kMaxAttentionHeadDim = 576;
inline constexpr uint32_t kMaxGroupSize = 64;

// InvalidArgument names the field.
absl::Status ValidateAttentionShape(const AttentionShape& shape);

// KV of one layer. Element [page, kv_head, token, i] of keys and values lies at
// page · page_stride + kv_head · head_stride + token · token_stride + i, in elements. Borrowed.
struct PagedKv {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  uint64_t page_stride = 0;
  uint64_t head_stride = 0;
  uint64_t token_stride = 0;

  // [pages, kv_heads, page_tokens, head_dim], dense.
  static PagedKv Dense(const AttentionShape& shape, const std::byte* keys, const std::byte* values);
};

// Borrowed. Rows are queries: all query tokens of all sequences.
struct AttentionTensors {
  const std::byte* queries = nullptr;  // [rows, query_heads, head_dim] of the shape's dtype
  float* output = nullptr;             // [rows, query_heads, head_dim]
  float* lse = nullptr;                // [rows, query_heads], natural logarithm
};

struct AttentionPlan {
  // Tokens [offset, offset + token_count) of the pages from pages[first_page] on.
  struct Segment {
    uint32_t first_page = 0;
    uint32_t offset = 0;
    uint32_t token_count = 0;
  };
  struct Unit {
    uint32_t first_segment = 0;
    uint32_t segment_count = 0;
    uint32_t token_count = 0;  // of all segments
    uint32_t first_query = 0;  // into queries, limits and partials
    uint32_t query_count = 0;
    // Into masks: query_count times MaskWords(token_count) words, bit t of a query's words set
    // if it sees token t. kNoMask: all below its limit.
    uint64_t first_mask = kNoMask;
  };
  static constexpr uint64_t kNoMask = ~uint64_t{0};
  // A partial that is the query's only one is written where the result belongs.
  static constexpr uint32_t kDirect = 0xFFFFFFFFu;
  static constexpr uint64_t MaskWords(uint32_t token_count) { return (token_count + 63) / 64; }

  uint32_t row_count = 0;
  std::vector<Unit> units;
  std::vector<Segment> segments;
  std::vector<uint32_t> pages;
  std::vector<uint32_t> queries;   // rows
  std::vector<uint32_t> limits;    // the query sees the unit's tokens below this
  std::vector<uint32_t> partials;  // where its result goes, or kDirect
  std::vector<uint64_t> masks;
  // Row r is merged from partials merge_list[merge_begin[r]] … of merge_begin[r + 1]; none for a
  // row with one direct partial. Rows without any are defined as seeing nothing.
  std::vector<uint32_t> merge_begin;  // row_count + 1
  std::vector<uint32_t> merge_list;
  uint32_t partial_count = 0;

  // Empty, with the arrays' memory kept.
  void Clear();

  // KV tokens read, each unit's once.
  uint64_t TokensRead() const;
};

// InvalidArgument says which index is out of range or which row has too few or too many results.
// O(size of the plan).
absl::Status ValidateAttentionPlan(const AttentionPlan& plan, const AttentionShape& shape,
                                   uint32_t page_count);

}  // namespace turnkeep
