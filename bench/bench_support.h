// What the benchmarks share: time, medians, layouts, and saving a context.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/kv_store.h"
#include "core/layout.h"

namespace turnkeep::bench {

class Stopwatch {
 public:
  double Seconds() const { return static_cast<double>(Clock::System()->NowNs() - begin_) * 1e-9; }
  double Micros() const { return Seconds() * 1e6; }

 private:
  int64_t begin_ = Clock::System()->NowNs();
};

inline double Quantile(std::vector<double> samples, double q) {
  if (samples.empty()) return 0;
  const auto at = static_cast<size_t>(q * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + static_cast<ptrdiff_t>(at), samples.end());
  return samples[at];
}
inline double Median(std::vector<double> samples) { return Quantile(std::move(samples), 0.5); }

// Token ids that depend on nothing but (seed, index).
inline std::vector<uint32_t> TokensOf(uint64_t seed, uint64_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t x = (seed << 32) + i + 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    tokens[i] = static_cast<uint32_t>((x ^ (x >> 31)) % 128'000);
  }
  return tokens;
}

inline KvLayout LayoutOf(const std::string& name, uint32_t layers, uint32_t kv_heads,
                         uint32_t head_dim, DType dtype) {
  KvLayout layout{.model = name, .weights_revision = "bench"};
  layout.layers.assign(layers, LayerSpec::Full(kv_heads, head_dim, dtype));
  return layout;
}

struct SavePart {
  std::string session;
  uint64_t generation = 0;
  Fingerprint layout;
  uint32_t layers = 0;
  std::vector<uint32_t> tokens;
};

// Saves a context, copying every page from `source` (at least as large as a page).
inline absl::StatusOr<CommitResult> SaveContext(KvStore& store, const SavePart& part,
                                                const std::vector<std::byte>& source) {
  auto ticket = store.BeginSave({.session = part.session,
                                 .expected_generation = part.generation,
                                 .layout = part.layout,
                                 .prompt = {.tokens = part.tokens},
                                 .space_deadline = absl::Seconds(60)});
  if (!ticket.ok()) return ticket.status();
  for (uint32_t layer = 0; layer < part.layers; ++layer) {
    for (size_t i = 0; i < (*ticket)->chunks().size(); ++i) {
      const auto page = (*ticket)->Page(i, layer);
      std::copy_n(source.begin(), page.size(), page.begin());
    }
    if (const absl::Status status = (*ticket)->FinishLayer(layer); !status.ok()) return status;
  }
  return (*ticket)->Commit(absl::Seconds(120));
}

}  // namespace turnkeep::bench
