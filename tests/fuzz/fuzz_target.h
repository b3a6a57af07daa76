// One fuzz target: what reads untrusted bytes, and seeds to begin with.
//
// The same target runs in two ways: as a libFuzzer program (fuzz_libfuzzer.cc; CMake preset
// `fuzz`, scripts/fuzz), and as an ordinary test over the seeds and some thousand random mutations
// of them (fuzz_regression_test.cc), with every compiler.
//
// `run` must return for every input; a property that does not hold is a failed TK_CHECK.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"

namespace turnkeep::testing {

struct FuzzTarget {
  const char* name;
  void (*run)(std::span<const std::byte> input);
  std::vector<std::string> (*seeds)();
  uint32_t regression_runs;  // mutations that the ordinary test tries
};
// Defined by the target's source.
extern const FuzzTarget kFuzzTarget;

inline std::string_view TextOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::span<const std::byte> BytesOf(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace turnkeep::testing
