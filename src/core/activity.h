// What goes on in a store: the hinted queue, the windows of prefetch and eviction, and what the
// placement decided lately (KvStore::GetActivity). Plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace turnkeep {

struct ActivityRequest {
  uint64_t after = 0;    // events with greater numbers only
  uint32_t limit = 100;  // of events (the newest) and of expected uses (the soonest)
};
inline constexpr uint32_t kMaxActivity = 4096;

// What a hint said: a request of the waiting queue, or an expected use.
struct ExpectedUse {
  std::string target;  // the session, or "prefix " and a hash
  bool queued = false;
  double due_in_s = 0;  // for a queue the order counts, not the time
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;  // only there
  uint64_t prefetching_bytes = 0;
};

// A decision of the placement: an eviction, or a prefetch that begins or is cancelled.
struct ActivityEvent {
  uint64_t number = 0;
  int64_t unix_s = 0;
  std::string what;
  std::string chunk;  // the beginning of its id
  uint64_t slot_bytes = 0;
  std::string why;
};

// What goes on for a tenant; the windows are the store's.
struct Activity {
  std::vector<ExpectedUse> expected;  // the soonest first
  uint64_t expected_count = 0;        // in all
  uint64_t fetch_window_bytes = 0;    // of which prefetches hold:
  uint64_t prefetch_in_flight_bytes = 0;
  uint64_t prefetch_unused_bytes = 0;
  uint64_t prefetch_waiting_chunks = 0;
  uint64_t eviction_window_bytes = 0;
  std::vector<ActivityEvent> events;  // in order
  uint64_t last_event = 0;            // its number, over all tenants
};

}  // namespace turnkeep
