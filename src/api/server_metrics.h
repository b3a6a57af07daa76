// What the server counts of itself, in the shape of the store's counts, and both as
// Prometheus text.
//
// ServerMetrics is used by the server's thread only.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/time/time.h>

#include "core/kv_types.h"

namespace turnkeep {

class ServerMetrics {
 public:
  void AddRequest(uint16_t type, absl::Duration latency, absl::StatusCode code);
  void AddDisconnect(const std::string& reason) { ++disconnects_[reason]; }
  void AddConnection() { ++accepted_; }
  uint64_t disconnects() const;

  // Appends what was counted; names as in docs/operations.md.
  void AppendTo(std::vector<NamedCount>& counts) const;

 private:
  static constexpr std::array<double, 12> kBoundsSeconds = {
      0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 10};
  struct Verb {
    uint64_t requests = 0;
    uint64_t errors = 0;
    double seconds = 0;
    std::array<uint64_t, kBoundsSeconds.size() + 1> buckets{};
  };
  friend std::string PrometheusText(const StoreStatus& status, const ServerMetrics& metrics,
                                    const std::vector<NamedCount>& extra);
  std::map<uint16_t, Verb> verbs_;
  std::map<int, uint64_t> errors_;  // by status code
  std::map<std::string, uint64_t> disconnects_;
  uint64_t accepted_ = 0;
};

// The store's counts, histograms and tiers, and the server's, as Prometheus text.
std::string PrometheusText(const StoreStatus& status, const ServerMetrics& metrics,
                           const std::vector<NamedCount>& extra);

}  // namespace turnkeep
