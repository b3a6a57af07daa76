// Copies a save's layers out of the paged cache, in order, on a thread of its own: layer
// i is copied and sealed while the engine computes layer i + 1. The mirror image of
// layer_loader.h.
//
// A save that fails stays without effect; the engine goes on.
//
// Thread-safety: one owner. The cache rows of the saved tokens may be read, but not
// changed, until the saver is destroyed or Wait has returned.
#pragma once

#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <thread>

#include "core/kv_store.h"
#include "llama/paged_kv_cache.h"

namespace turnkeep::llama {

class LayerSaver {
 public:
  // `table` (copied) holds the context that the ticket was begun for.
  LayerSaver(BlockTable table, std::unique_ptr<SaveTicket> ticket);
  // Unless committed, the save is abandoned. Waits for the layer that is being copied, or
  // for the commit.
  ~LayerSaver();
  LayerSaver(const LayerSaver&) = delete;
  LayerSaver& operator=(const LayerSaver&) = delete;

  // The first `count` layers are complete in the cache. Never blocks.
  void LayersReady(uint32_t count);
  // Commits once all layers are copied. Never blocks; all layers must be ready.
  void Commit(absl::Duration deadline);
  // Blocks until the commit is through. Only after Commit.
  absl::StatusOr<CommitResult> Wait();

 private:
  void Run();
  void CopyLayer(uint32_t layer);

  const BlockTable table_;
  const std::unique_ptr<SaveTicket> ticket_;

  absl::Mutex mutex_;
  uint32_t ready_ ABSL_GUARDED_BY(mutex_) = 0;
  bool commit_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration deadline_ ABSL_GUARDED_BY(mutex_);
  absl::StatusOr<CommitResult> result_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace turnkeep::llama
