// Kernels of the CUDA ordering test. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turnkeep::testing {

// On `stream` (a cudaStream_t): after `spin_cycles`, words[0 … count) = value.
void FillAfter(void* stream, uint64_t* words, size_t count, uint64_t value, uint32_t spin_cycles);
// On `stream`: *wrong += the number of words that are not `value`.
void CountWrong(void* stream, const uint64_t* words, size_t count, uint64_t value,
                unsigned int* wrong);

}  // namespace turnkeep::testing
