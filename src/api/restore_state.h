// What a client knows of one restore under way. Internal to src/api; users see client.h.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "api/wire_messages.h"

namespace turnkeep {

// What the daemon has said about one restore. Shared by its ticket and the connection's
// reader.
class RestoreState {
 public:
  // Takes the news in. Tokens only ever get fewer.
  void Update(const wire::Progress& progress);
  // Nothing more will be heard; layers that are there stay there.
  void Lose(const std::string& reason);
  // Tokens from `tokens` on are a miss.
  void Shrink(uint64_t tokens, const std::string& reason);
  // Whether `layer` is ready, or never will be. Takes no lock.
  bool decided(uint32_t layer) const {
    return decided_layers_.load(std::memory_order_acquire) > layer;
  }
  // Tokens that are valid for `layer`; 0 if it did not arrive.
  uint64_t TokensOf(uint32_t layer) const;
  uint64_t valid_tokens() const;
  bool layer_ready(uint32_t layer) const;
  std::string miss_reason() const;

 private:
  void Decide() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::atomic<uint64_t> decided_layers_{0};  // waiting for those before it is over
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  uint32_t layers_ready_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t valid_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::string miss_reason_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace turnkeep
