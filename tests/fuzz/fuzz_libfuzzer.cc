// Makes a libFuzzer program of a target. Writes the seeds to $TURNKEEP_FUZZ_SEEDS (a folder that
// exists) before libFuzzer reads its corpus.
#include <cstdlib>
#include <fstream>

#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* folder = std::getenv("TURNKEEP_FUZZ_SEEDS");
  if (folder == nullptr) return 0;
  const std::vector<std::string> seeds = turnkeep::testing::kFuzzTarget.seeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::ofstream file(std::string(folder) + "/seed" + std::to_string(i), std::ios::binary);
    file << seeds[i];
    TK_CHECK(file.good());
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  turnkeep::testing::kFuzzTarget.run({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
