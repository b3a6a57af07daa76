#include "metrics.h"

#include <algorithm>
#include <numeric>

namespace turnkeep::replay {

Summary Summarize(const std::vector<float>& values) {
  if (values.empty()) return {};
  std::vector<float> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  // Nearest rank: the smallest value that at least the share p is not above.
  const auto at = [&](double p) {
    const auto rank = static_cast<size_t>(p * static_cast<double>(sorted.size()) + 0.999999);
    return static_cast<double>(sorted[std::min(std::max<size_t>(rank, 1), sorted.size()) - 1]);
  };
  const double sum = std::accumulate(sorted.begin(), sorted.end(), 0.0);
  return {.mean = sum / static_cast<double>(sorted.size()), .p50 = at(0.5), .p99 = at(0.99)};
}

}  // namespace turnkeep::replay
