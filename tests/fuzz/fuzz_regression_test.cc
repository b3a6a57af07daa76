// Runs a fuzz target over its seeds and over random mutations of them. The number of mutations can
// be set with TURNKEEP_FUZZ_RUNS, the seed of the mutations with TURNKEEP_FUZZ_SEED.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <random>

#include <gtest/gtest.h>

#include "fuzz/fuzz_target.h"

namespace turnkeep::testing {
namespace {

// What is running now, for the signal handler: a crash must leave its input behind.
std::string g_input;

void Say(const char* text, size_t bytes) {
  while (bytes > 0) {
    const ssize_t written = write(STDERR_FILENO, text, bytes);
    if (written <= 0) return;
    text += written;
    bytes -= static_cast<size_t>(written);
  }
}

void OnCrash(int signal) {
  Say("input:", 6);
  constexpr char kDigits[] = "0123456789abcdef";
  for (const char c : g_input) {
    const auto byte = static_cast<unsigned char>(c);
    const char hex[2] = {kDigits[byte >> 4], kDigits[byte & 15]};
    Say(hex, 2);
  }
  Say("\n", 1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

uint64_t NumberFrom(const char* variable, uint64_t otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

void RunTarget(std::string input) {
  g_input = std::move(input);
  kFuzzTarget.run(BytesOf(g_input));
}

class Mutator {
 public:
  Mutator(std::vector<std::string> seeds, uint64_t seed)
      : seeds_(std::move(seeds)), random_(seed) {}

  std::string Next() {
    std::string bytes = seeds_[Below(seeds_.size())];
    const uint64_t steps = 1 + Below(4);
    for (uint64_t i = 0; i < steps; ++i) Mutate(bytes);
    return bytes;
  }

 private:
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void Mutate(std::string& bytes) {
    const uint64_t at = Below(bytes.size());
    switch (Below(8)) {
      case 0:
        if (!bytes.empty()) bytes[at] ^= static_cast<char>(1u << Below(8));
        break;
      case 1:
        if (!bytes.empty()) bytes[at] = static_cast<char>(random_());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(at, 1 + Below(16));
        break;
      case 4:
        bytes.insert(at, std::string(1 + Below(16), static_cast<char>(random_())));
        break;
      case 5: {  // a number that breaks arithmetic
        static constexpr uint64_t kNumbers[] = {0,
                                                1,
                                                0x7F,
                                                0xFF,
                                                0xFFFF,
                                                0x7FFFFFFF,
                                                0xFFFFFFFF,
                                                0x7FFFFFFFFFFFFFFF,
                                                0xFFFFFFFFFFFFFFFF};
        const uint64_t number = kNumbers[Below(std::size(kNumbers))];
        const size_t width = size_t{1} << Below(4);
        if (at + width <= bytes.size()) std::memcpy(bytes.data() + at, &number, width);
        break;
      }
      case 6:  // a part of itself again
        bytes.insert(at, bytes.substr(Below(bytes.size()), 1 + Below(64)));
        break;
      default: {  // the front of one, the end of another
        const std::string& other = seeds_[Below(seeds_.size())];
        bytes = bytes.substr(0, at) + other.substr(Below(other.size()));
        break;
      }
    }
  }

  std::vector<std::string> seeds_;
  std::mt19937_64 random_;
};

TEST(FuzzRegression, SeedsAndTheirMutationsAreHandled) {
  std::signal(SIGABRT, OnCrash);
  std::signal(SIGSEGV, OnCrash);
  const std::vector<std::string> seeds = kFuzzTarget.seeds();
  ASSERT_FALSE(seeds.empty());
  for (const std::string& seed : seeds) RunTarget(seed);
  RunTarget("");
  const uint64_t seed = NumberFrom("TURNKEEP_FUZZ_SEED", 1);
  const uint64_t runs = NumberFrom("TURNKEEP_FUZZ_RUNS", kFuzzTarget.regression_runs);
  std::printf("%s: %zu seeds, %lu mutations, TURNKEEP_FUZZ_SEED=%lu\n", kFuzzTarget.name,
              seeds.size(), static_cast<unsigned long>(runs), static_cast<unsigned long>(seed));
  std::fflush(stdout);
  Mutator mutator(seeds, seed);
  for (uint64_t i = 0; i < runs; ++i) RunTarget(mutator.Next());
}

}  // namespace
}  // namespace turnkeep::testing
