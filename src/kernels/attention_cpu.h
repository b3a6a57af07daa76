// The CPU executor of attention plans: float32 accumulation, Google Highway with run-time dispatch
// up to AVX-512.
//
// Three kernels. Units with few query rows (a row is one query of one head of the group) stream K
// and V through registers: bytes bound. Units of five to eight rows do so for two halves of their
// rows. Units with more convert the keys of a tile of 48 tokens to float32 once and use them for
// all rows in register blocks, scores transposed so that nothing is reduced across lanes:
// operations bound. docs/kernels.md has the floors of all.
//
//   CpuAttention attention(&pool);
//   attention.Run(shape, kv, plan, {queries, output, lse});
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/attention.h"

namespace turnkeep {

// Scores of one layer, for the layers that share its weights (Shared Attention, section 3). Made
// by one plan and only good for it.
struct AttentionScores {
  std::vector<float> values;
  std::vector<uint64_t> unit_begin;  // into values
};

// Not thread-safe: one call at a time, which uses the whole pool.
class CpuAttention {
 public:
  // `pool` must outlive it.
  explicit CpuAttention(ThreadPool* pool) : pool_(pool), scratch_(pool->thread_count()) {}

  // The shape and the plan must be valid (ValidateAttentionShape, ValidateAttentionPlan).
  // `scores`, where given, receives what ApplyWeights needs.
  void Run(const AttentionShape& shape, const PagedKv& kv, const AttentionPlan& plan,
           const AttentionTensors& tensors, AttentionScores* scores = nullptr);

  // A value_only layer: o = Σ_t e^{s_t - lse} · v_t with the scores and log-sum-exps of an
  // earlier layer. Reads kv.values and tensors.lse, writes tensors.output.
  void ApplyWeights(const AttentionShape& shape, const PagedKv& kv, const AttentionPlan& plan,
                    const AttentionScores& scores, const AttentionTensors& tensors);

  // The instruction set in use: "AVX2", "AVX3", …
  static const char* Target();

 private:
  struct Task {
    uint32_t unit = 0;
    uint32_t kv_head = 0;
  };
  void RunUnits(const AttentionShape& shape, const PagedKv& kv, const AttentionPlan& plan,
                const AttentionTensors& tensors, float* scores, const uint64_t* unit_begin,
                bool apply);

  ThreadPool* const pool_;
  std::vector<std::vector<float>> scratch_;  // one a worker
  std::vector<float> partial_output_;        // [partial_count, query_heads, head_dim]
  std::vector<float> partial_lse_;           // [partial_count, query_heads]
};

// Rates of this machine with all threads of the pool, for floors. One sample each, of some
// milliseconds; what disturbs the machine lowers it.
//
// Bytes a second read from `words`, which should be more than the caches hold (128 MiB), and whose
// pages must have been written.
double ReadBytesPerS(ThreadPool& pool, std::span<const uint64_t> words);
// float32 multiply-adds from registers, two operations each.
double MultiplyAddOpsPerS(ThreadPool& pool);

}  // namespace turnkeep
