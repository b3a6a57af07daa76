// The hashing loops behind digest.h, compiled once for every machine and once for AVX2
// (digest.cc chooses at run time; the results are the same bits).
//
// Plain pointers and no C++ library headers: an inline function of a header that the
// AVX2 file includes could otherwise be the one copy that the linker keeps, and stop a
// machine without AVX2.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace turnkeep::internal {

struct RawDigest {
  uint64_t low;
  uint64_t high;
};

struct DigestKernel {
  RawDigest (*hash)(const void* bytes, size_t size, uint64_t seed);
  RawDigest (*copy_and_hash)(void* destination, const void* source, size_t size, uint64_t seed);
};

extern const DigestKernel kDigestKernelBaseline;
#if defined(__x86_64__)
extern const DigestKernel kDigestKernelAvx2;
#endif

}  // namespace turnkeep::internal
