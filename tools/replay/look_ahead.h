// What a scheduler knows of the future, told to the cache: the next requests of the trace, or the
// queue of waiting jobs, and prefetches from disk for the first of these (CachedAttention, arXiv
// 2403.19708, section 3.3).
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "cache.h"
#include "optimum.h"
#include "trace.h"

namespace turnkeep::replay {

// Tells every block's next use within the next `window` requests. Requests are served in the order
// of the trace (open loop, no queue). Places are request indexes.
class TraceLookAhead {
 public:
  // Trace and cache outlive it.
  TraceLookAhead(const Trace& trace, uint64_t window, Cache* cache);
  // Around the service of request `index`.
  void Before(uint32_t index);
  void After(uint32_t index);

 private:
  const Trace& trace_;
  const uint64_t window_;
  Cache& cache_;
  const NextUses uses_;
  uint64_t entered_ = 0;       // requests before this one are or were in the window
  std::vector<bool> pending_;  // by block: used by some request of the window
};

// The queue of waiting jobs, in order. Jobs among the first that the host tier has room for are
// brought from disk one after another.
class QueueLookAhead {
 public:
  QueueLookAhead(const Trace& trace, uint64_t kv_bytes_per_token, double disk_bytes_per_s,
                 Cache* cache)
      : trace_(trace),
        kv_bytes_per_token_(kv_bytes_per_token),
        disk_bytes_per_s_(disk_bytes_per_s),
        cache_(*cache) {}
  void Arrived(uint32_t request);
  // Call for the waiting jobs that the host tier has room for, in order, when time has passed.
  void MayPrefetch(uint32_t request, double now_s);
  // Prefetches whose bytes have arrived become host copies.
  void Complete(double now_s);
  // The job at the head is served and leaves the queue; call after Cache::Use.
  void Served(uint32_t request);

  uint64_t prefetched_blocks() const { return prefetched_blocks_; }
  // How many of the request's blocks a completed prefetch brought.
  uint32_t PrefetchedFor(uint32_t request) const {
    return request < brought_.size() ? brought_[request] : 0;
  }

 private:
  struct Prefetch {
    uint32_t request = 0;
    double ready_s = 0;
  };
  const Trace& trace_;
  const uint64_t kv_bytes_per_token_;
  const double disk_bytes_per_s_;
  Cache& cache_;
  int64_t places_ = 0;
  double disk_free_s_ = 0;
  std::deque<Prefetch> running_;
  std::vector<bool> asked_;        // by request
  std::vector<uint32_t> brought_;  // by request
  uint64_t prefetched_blocks_ = 0;
};

}  // namespace turnkeep::replay
