// What `turnkeep bench store` measures. Every figure comes with its physical bound, measured
// in the same run on the same machine, rounds of the two alternating.
//
// Each function makes its own store below `directory` and removes it. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "core/units.h"

namespace turnkeep::bench {

struct StoreBenchOptions {
  std::string directory;  // on the file system to be measured
  std::vector<uint64_t> chunk_counts = {10'000, 100'000, 1'000'000};
  uint64_t bandwidth_bytes = 512 * kMiB;  // KV moved per round of the bandwidth figures
  uint32_t rounds = 5;                    // medians are over these
  uint32_t samples = 400;                 // of each latency
  // What is being done, and how much of it; for a progress bar.
  std::function<void(const std::string& what, uint64_t done, uint64_t total)> progress =
      [](const std::string&, uint64_t, uint64_t) {};
};

// Bytes a second, and their quotient.
struct Share {
  double measured = 0;
  double bound = 0;
  double share() const { return bound == 0 ? 0 : measured / bound; }
};

struct BandwidthResult {
  Share host_restore;  // verified restore host tier → engine buffer ÷ memcpy, one thread
  Share disk_restore;  // cold restore from disk → engine buffer ÷ raw direct reads
  Share disk_load;     // the same without the engine's copy: verified in host memory
  Share disk_save;     // a stream of durable saves ÷ raw direct writes
  std::string device;  // what the disk tier used
  uint64_t page_bytes = 0;
};
absl::StatusOr<BandwidthResult> MeasureBandwidth(const StoreBenchOptions& options);

// The daemon's latencies with a given number of chunks in the store, over its Unix socket.
struct ScaleResult {
  uint64_t chunks = 0;
  double session_open_us_p50 = 0;  // begin restore of a 100,000-token session in the host tier
  double session_open_us_p99 = 0;
  double lookup_hit_us_p50 = 0;  // a 128K-token prompt, all stored, by tokens
  double lookup_hit_us_p99 = 0;
  double lookup_miss_us_p50 = 0;  // a 2,048-token prompt, nothing stored
  double lookup_miss_us_p99 = 0;
  double metadata_bytes_per_chunk = 0;  // anonymous memory of the process ÷ chunks
  // Bounds of the same run: an empty round trip, and one that carries the prompt's bytes.
  double round_trip_us_p50 = 0;
  double hash_prompt_us = 0;  // the HMAC chain over 128K tokens alone
  double reopen_s = 0;        // after a kill: to the first answer
};
absl::StatusOr<std::vector<ScaleResult>> MeasureScales(const StoreBenchOptions& options);

// 704 new tokens on a 99,000-token session: bytes given to the device and the index ÷ new KV bytes.
struct AmplificationResult {
  double append_write_amplification = 0;
  double bound = 0;  // a chunk is written whole: (new + refilled tail) ÷ new
  uint64_t new_kv_bytes = 0;
  uint64_t device_bytes = 0;
  uint64_t index_bytes = 0;
};
absl::StatusOr<AmplificationResult> MeasureAmplification(const StoreBenchOptions& options);

}  // namespace turnkeep::bench
