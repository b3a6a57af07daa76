// The engine's side of a KV cache whose pages lie in a device's memory (KvSide with an attention):
// rows computed on the CPU go up, attention runs there, its output comes down.
//
// New rows take the way of restored ones, LayerMover::Scatter, so that a raw key is rotated by the
// same code and gives the same bits whether it was computed or restored. Every row is a unit of its
// own in the attention plan: a row's output depends on what it sees and not on the batch it is in.
// That is the engine's promise (engine.h), and costs a prefill reads that larger units would share.
//
// Not thread-safe; one pass at a time. A pass is of one sequence.
//
//   TK_RETURN_IF_ERROR(pages->BeginPass(options, shape, sequence));
//   for (layer …) {
//     TK_RETURN_IF_ERROR(pages->BeginRows(first, count));
//     … fill KeyRow(i), ValueRow(i), QueryRow(i) …
//     TK_RETURN_IF_ERROR(pages->StoreAndAttend(layer, attended));
//   }
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gpu_tier/device.h"
#include "gpu_tier/layer_mover.h"
#include "kernels/attention.h"
#include "llama/kv_side.h"
#include "llama/paged_kv_cache.h"

namespace turnkeep::llama {

class DevicePages {
 public:
  // `side` has an attention and outlives this; so do caches with pages here.
  explicit DevicePages(KvSide* side) : side_(side) {}

  Device& device() { return *side_->device; }
  // What reads and writes the pages runs on it.
  absl::StatusOr<DeviceStream*> Stream();

  // `mover` tells where the sequence's pages are (MoverOptionsOf). InvalidArgument: the device's
  // attention cannot do the shape; ResourceExhausted: no memory for staging.
  absl::Status BeginPass(PageMoverOptions mover, const AttentionShape& shape,
                         const Sequence& sequence);
  // The next rows are tokens [first, first + count) of the sequence, at most Engine::kMaxBatchRows.
  absl::Status BeginRows(uint64_t first, size_t count);
  // Host memory of the i-th of them, in the cache's dtype: keys as the layout has them, [kv_heads,
  // head_dim]; queries rotated, [heads, head_dim].
  std::byte* KeyRow(size_t i) const { return staged_.data() + i * row_bytes_; }
  std::byte* ValueRow(size_t i) const { return KeyRow(count_ + i); }
  std::byte* QueryRow(size_t i) const { return KeyRow(2 * count_) + i * query_bytes_; }
  // Puts the rows into `layer` and attends; `output` gets [count, heads, head_dim]. Blocks.
  absl::Status StoreAndAttend(uint32_t layer, float* output);

  // Moves tokens [drop_end, token_count) down to drop_begin and rotates their keys for it. Blocks.
  absl::Status Truncate(PageMoverOptions mover, const Sequence& sequence, uint64_t token_count,
                        uint64_t drop_begin, uint64_t drop_end);

 private:
  absl::Status Reserve(DeviceMemory* memory, size_t bytes, bool pinned);
  void PlanRows();

  KvSide* const side_;
  std::unique_ptr<DeviceStream> stream_;
  std::unique_ptr<LayerMover> mover_;
  AttentionShape shape_;
  PagedKvCache* cache_ = nullptr;
  std::vector<uint32_t> pages_;
  AttentionPlan plan_;
  uint64_t first_ = 0;
  size_t count_ = 0;
  size_t row_bytes_ = 0;    // of keys, or of values
  size_t query_bytes_ = 0;  // of a row's queries
  size_t output_bytes_ = 0;
  DeviceMemory staged_;     // host: keys, values, queries
  DeviceMemory results_;    // host
  DeviceMemory on_device_;  // keys, values, queries, output, lse
};

}  // namespace turnkeep::llama
