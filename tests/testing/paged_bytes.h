// Random caches and block tables for the tests of gather and scatter.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace turnkeep::testing {

inline std::vector<std::byte> RandomBytes(std::mt19937_64& random, uint64_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// Every page once, the same order for the same count.
inline std::vector<uint32_t> ShuffledPages(uint32_t count) {
  std::vector<uint32_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(count));
  return pages;
}

}  // namespace turnkeep::testing
