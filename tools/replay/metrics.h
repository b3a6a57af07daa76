// What a replay counts. Only requests after the warm-up are in it. Plain values.
#pragma once

#include <cstdint>
#include <vector>

namespace turnkeep::replay {

struct Metrics {
  uint64_t requests = 0;
  uint64_t hit_requests = 0;  // with at least one block restored
  uint64_t tokens = 0;        // of the prompts
  uint64_t hit_tokens = 0;
  uint64_t hit_tokens_host = 0;
  uint64_t blocks = 0;      // of the prompts
  uint64_t hit_blocks = 0;  // of the longest stored prefix
  uint64_t hit_blocks_host = 0;
  uint64_t hit_blocks_disk = 0;
  uint64_t hit_requests_host = 0;  // all that was restored came from host memory

  // Seconds, one a request.
  std::vector<float> ttft_with;
  std::vector<float> ttft_without;
  double wait_s = 0;  // in the queue, all requests
  double prefill_s_with = 0;
  double prefill_s_without = 0;
  double decode_s = 0;
  double gpu_s_with = 0;
  double gpu_s_without = 0;
  double span_s = 0;  // from the first counted arrival to the last end

  uint64_t disk_written_bytes = 0;
  uint64_t evicted_blocks = 0;
  uint64_t declined_restores = 0;  // not taken, or cut short, since prefill is quicker
  uint64_t prefetched_blocks = 0;
  uint64_t prefetched_used_blocks = 0;
  uint64_t host_used_bytes = 0;  // at the end
  uint64_t disk_used_bytes = 0;
  uint64_t peak_queue = 0;

  // Requests as they were served, the warm-up too; for the optimum.
  std::vector<uint32_t> order;
};

struct Summary {
  double mean = 0, p50 = 0, p99 = 0;
};
// Of any order of values; zeros of none.
Summary Summarize(const std::vector<float>& values);

inline double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace turnkeep::replay
