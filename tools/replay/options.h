// The options of a replay, by name: the command line and --sweep set them the same way.
//
// Thread-compatible.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "generator.h"
#include "model_presets.h"
#include "readers.h"
#include "real_store.h"
#include "simulator.h"

namespace turnkeep::replay {

struct Prices {
  // $ an hour; CachedAttention's table (arXiv 2403.19708, section 4.2): one A100, and a GB
  // of DRAM and of SSD.
  double gpu_hour = 5.0;
  double dram_gb_hour = 0.0088;
  double disk_gb_hour = 0.000082;
};

struct Options {
  std::string trace;           // a file, or "sharegpt": generated conversations
  GeneratorOptions generator;  // its window and seed come from the model and --seed
  std::string format = "auto";
  ReadOptions read;
  uint32_t chunk_tokens = 0;    // 0: the trace's own blocks
  uint64_t first_requests = 0;  // of the trace; 0: all

  // Capacities: bytes or blocks; what is not given is 0. Or a share of the live bytes.
  std::optional<double> host_gib, disk_gib;
  std::optional<uint64_t> host_blocks, disk_blocks;
  std::optional<double> host_live_share;
  bool live_sessions = false;           // live: used by a session that has not ended
  double live_ttl_s = 0;                // or within so many seconds; else: what will be used again
  std::optional<uint64_t> block_bytes;  // of a chunk's slot, instead of the model's
  bool write_through = false;
  bool reserve_window = false;  // whole sessions: room for the window, not for what is used

  std::string policy = "lru";
  uint64_t lookahead = 0;
  double prefetch_share = 0;  // of the host tier; 0: no prefetches but for a queue
  double high_watermark = 1.0;
  double low_watermark = 1.0;

  std::string model = "llama-3-8b-h200";
  std::optional<uint64_t> kv_bytes_per_token;
  std::optional<double> prefill_tokens_per_s;
  std::optional<double> prefill_half_speed_tokens;
  bool prefill_floor = true;
  std::optional<double> decode_gb_per_s;
  double host_gb_per_s = 26;
  double disk_gb_per_s = 5;
  QueueRule queue = QueueRule::kNone;
  uint32_t batch = 24;
  double read_buffer_gib = 0;
  uint64_t warmup = 0;
  bool decline = true;
  bool stop_reasons = true;
  Prices prices;
  RealOptions real;  // its run name is made
};

struct OptionSpec {
  const char* name;  // without "--"
  const char* type;  // of its value, for the help
  const char* help;
  absl::Status (*set)(const std::string& value, Options* options);
};
std::span<const OptionSpec> OptionSpecs();

// InvalidArgument "--name: …" for a name or value that cannot be.
absl::Status SetOption(const std::string& name, const std::string& value, Options* options);

// The preset, with the numbers that were given instead.
absl::StatusOr<Model> ModelOf(const Options& options);

// "policy=lru,fifo": the name and its values.
struct Sweep {
  std::string name;
  std::vector<std::string> values;
};
absl::StatusOr<Sweep> ParseSweep(const std::string& text);

}  // namespace turnkeep::replay
