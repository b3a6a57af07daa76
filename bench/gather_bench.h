// What `turnkeep bench gather` measures: gather and scatter between paged layouts and chunk pages,
// one thread, against a copy of the same bytes in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

namespace turnkeep::bench {

struct GatherBenchOptions {
  uint64_t bytes = 64 << 20;  // KV moved per round
  uint32_t rounds = 7;        // medians are over these
  std::function<void(const std::string& what, uint64_t done, uint64_t total)> progress =
      [](const std::string&, uint64_t, uint64_t) {};
};
struct GatherRow {
  std::string layout;
  uint32_t page_tokens = 0;
  uint64_t chunk_page_bytes = 0;  // of one layer page: 64 tokens
  double gather_bytes_per_s = 0;
  double scatter_bytes_per_s = 0;
  double rotated_bytes_per_s = 0;  // scatter with a rotation of keys fused in; 0: values only
  double copy_bytes_per_s = 0;
};
absl::StatusOr<std::vector<GatherRow>> MeasureGather(const GatherBenchOptions& options);

}  // namespace turnkeep::bench
