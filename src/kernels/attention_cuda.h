// The CUDA executor of attention plans: attention_cpu.h's counterpart on device pointers. Only in
// builds with CUDA; the header needs none of CUDA's. sm_80 and later.
//
// Three kernels: units with up to four query rows (a row is one query of one head of the group)
// stream K and V, bound by bytes; units with more run on tensor cores, 64 rows a block; rows with
// several partials are merged. A plan is uploaded once and serves all layers of a step.
// docs/kernels.md has the floors.
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
  // InvalidArgument: not float16 or bfloat16, head_dim not 64, 128 or 256, page tokens past 2^32.
  // ResourceExhausted: no memory for the plan and its partial results, with the sizes.
  absl::Status Upload(const AttentionShape& shape, const AttentionPlan& plan, void* stream);

  // The uploaded plan over one layer. All pointers are the device's and the operation's until the
  // stream has reached its end; does not wait. FailedPrecondition: nothing is uploaded.
  // InvalidArgument: a pointer that is not 16-byte aligned, or a stride that is no multiple of 8.
  absl::Status Run(const PagedKv& kv, const AttentionTensors& tensors, void* stream);

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace turnkeep
