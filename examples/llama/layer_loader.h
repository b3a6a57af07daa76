// Loads a restore's layers into the paged cache, in order, on a thread of its own, so
// that layer i + 1 is read while the engine computes layer i.
//
// Damage, lateness and a lost daemon only shorten the prefix that counts as loaded; they
// are never an error of the engine.
//
// Thread-safety: one owner; the cache rows below token_count() belong to the loader
// until Wait has returned for their layer.
#pragma once

#include <absl/synchronization/mutex.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "core/kv_store.h"
#include "llama/engine.h"

namespace turnkeep::llama {

class LayerLoader {
 public:
  // Starts at once. `table` (copied) has room for the ticket's tokens; of these the first
  // `max_tokens` are loaded. `engine` outlives this.
  LayerLoader(const Engine* engine, BlockTable table, std::unique_ptr<RestoreTicket> ticket,
              uint64_t max_tokens);
  // Stops after the page that is being read, and releases the ticket.
  ~LayerLoader();
  LayerLoader(const LayerLoader&) = delete;
  LayerLoader& operator=(const LayerLoader&) = delete;

  // Blocks until `layer` is in the cache. Returns for how many leading tokens all layers
  // up to it are; never more than an earlier call returned.
  uint64_t Wait(uint32_t layer);

  // Leading tokens that may still be counted on.
  uint64_t tokens() const;
  // Tokens below `below` that came from `tier`.
  uint64_t TokensFrom(Tier tier, uint64_t below) const;
  // Why the prefix got shorter on the way; empty if it did not.
  std::string trouble() const;

 private:
  void Run();
  // The new number of loaded tokens, which is `tokens` if nothing is wrong.
  uint64_t LoadLayer(uint32_t layer, uint64_t tokens);
  absl::Status LoadSpan(uint32_t layer, size_t span, uint64_t tokens);
  void Report(const std::string& trouble);

  const Engine* const engine_;
  const BlockTable table_;
  const std::unique_ptr<RestoreTicket> ticket_;
  std::vector<std::byte> staging_;  // one layer page; the thread's own

  mutable absl::Mutex mutex_;
  uint32_t layers_ ABSL_GUARDED_BY(mutex_) = 0;  // loaded so far
  uint64_t tokens_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::string trouble_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace turnkeep::llama
