// What the store counts. Plain numbers under the store's lock; status.cc gives them
// their Prometheus names.
#pragma once

#include <array>
#include <cstdint>

namespace turnkeep {

struct Counters {
  uint64_t saves_begun = 0;
  uint64_t saves_committed = 0;
  uint64_t saves_refused_generation = 0;
  uint64_t saves_cut_short = 0;  // fewer tokens accepted than offered
  uint64_t saved_tokens = 0;     // new ones
  uint64_t saved_bytes = 0;

  uint64_t restores = 0;
  uint64_t restores_missed = 0;    // nothing found
  uint64_t restores_partial = 0;   // a shorter prefix than asked for
  uint64_t restores_cut_late = 0;  // by a deadline
  uint64_t restores_waited = 0;    // for room in the host tier
  uint64_t restores_declined = 0;  // in part or whole: prefilling takes less time
  uint64_t declined_tokens = 0;
  uint64_t asked_tokens = 0;
  std::array<uint64_t, 4> restored_tokens{};  // by Tier
  std::array<uint64_t, 4> restored_chunks{};

  uint64_t host_evictions = 0;       // host copies dropped while a disk copy remained
  uint64_t host_evictions_lost = 0;  // … and none remained
  uint64_t disk_evictions = 0;
  uint64_t evicted_for_space = 0;
  uint64_t evicted_at_watermark = 0;
  uint64_t evicted_for_prefetch = 0;
  uint64_t evicted_by_hint = 0;

  uint64_t host_digest_failures = 0;
  uint64_t disk_digest_failures = 0;
  uint64_t disk_read_errors = 0;
  uint64_t disk_write_errors = 0;
  uint64_t disk_writes_refused = 0;  // cap or budget
  uint64_t index_errors = 0;
  uint64_t chunks_written = 0;
  uint64_t bytes_written = 0;
  uint64_t chunks_read = 0;
  uint64_t bytes_read = 0;
  uint64_t sessions_expired = 0;
};

}  // namespace turnkeep
