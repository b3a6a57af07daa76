// The CUDA executor of attention plans: attention_cpu.h's counterpart on device pointers. Only in
// builds with CUDA; the header needs none of CUDA's. sm_80 and later.
//
// Three kernels: units with up to four query rows (a row is one query of one head of the group)
// stream K and V, bound by bytes; units with more run on tensor cores, 64 rows a block; rows with
// several partials are merged. A plan is uploaded once and serves all layers of a step.
// docs/kernels.md has the floors.
//
// Float32 has no tile kernel: every four rows of a unit stream its KV.
//
//   CudaAttention attention;
//   TK_RETURN_IF_ERROR(attention.Upload(shape, plan, stream));
//   for (layer …) TK_RETURN_IF_ERROR(attention.Run(kv, {queries, output, lse}, stream));
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <absl/status/status.h>

#include "kernels/attention.h"

namespace turnkeep {

// Scores of one layer, for the layers that share its weights (Shared Attention, section 3): 4 bytes
// a query head and token that the plan pairs, in device memory. Made by one plan and only good for
// it. Not thread-safe; belongs to the work of the streams that it was given to.
class CudaAttentionScores {
 public:
  CudaAttentionScores();
  // Waits for the device's work.
  ~CudaAttentionScores();
  CudaAttentionScores(const CudaAttentionScores&) = delete;
  CudaAttentionScores& operator=(const CudaAttentionScores&) = delete;

 private:
  friend class CudaAttention;
  struct State;
  const std::unique_ptr<State> state_;
};

// Not thread-safe. Used with one stream at a time: a call on another stream must be ordered behind
// the work of the ones before. Works on the calling thread's current device.
class CudaAttention {
 public:
  CudaAttention();
  // Waits for the device's work.
  ~CudaAttention();
  CudaAttention(const CudaAttention&) = delete;
  CudaAttention& operator=(const CudaAttention&) = delete;

  // The shape and the plan must be valid (ValidateAttentionShape, ValidateAttentionPlan). Copies
  // the plan; it may change after the return. `stream` is a cudaStream_t. Waits for the device
  // when a larger plan than ever before needs more memory; otherwise CUDA may wait for the stream,
  // because the copy is from pageable memory.
  // InvalidArgument: a dtype that is not float32, float16 or bfloat16, head_dim not 64, 128 or 256,
  // page tokens past 2^32.
  // ResourceExhausted: no memory for the plan and its partial results, with the sizes.
  absl::Status Upload(const AttentionShape& shape, const AttentionPlan& plan, void* stream);

  // The uploaded plan over one layer. All pointers are the device's and the operation's until the
  // stream has reached its end; does not wait. FailedPrecondition: nothing is uploaded.
  // InvalidArgument: a pointer that is not 16-byte aligned, or a stride that is no multiple of 8.
  // `scores`, where given, receives what ApplyWeights needs; ResourceExhausted: no memory for them.
  // Waits for the device when they need more than ever before.
  absl::Status Run(const PagedKv& kv, const AttentionTensors& tensors, void* stream,
                   CudaAttentionScores* scores = nullptr);

  // A value_only layer: o = Σ_t e^{s_t - lse} · v_t with the scores and log-sum-exps of an earlier
  // layer, in stream order behind its Run. Reads kv.values and tensors.lse, writes tensors.output.
  // FailedPrecondition also: `scores` are not of the uploaded plan. Otherwise as Run.
  absl::Status ApplyWeights(const PagedKv& kv, const CudaAttentionScores& scores,
                            const AttentionTensors& tensors, void* stream);

 private:
  struct State;
  absl::Status Launch(const PagedKv& kv, const AttentionTensors& tensors, float* scores, bool apply,
                      void* stream);
  const std::unique_ptr<State> state_;
};

}  // namespace turnkeep
