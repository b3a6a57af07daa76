#include "core/digest.h"

#include <array>

#include "core/byte_codec.h"
#include "core/check.h"
#include "core/digest_kernel.h"

namespace turnkeep {
namespace {

const internal::DigestKernel& Kernel() {
#if defined(__x86_64__)
  static const internal::DigestKernel& kernel = __builtin_cpu_supports("avx2")
                                                    ? internal::kDigestKernelAvx2
                                                    : internal::kDigestKernelBaseline;
  return kernel;
#else
  return internal::kDigestKernelBaseline;
#endif
}

uint64_t SeedOf(const PageBinding& binding) {
  std::array<std::byte, 32 + 4 + 8> message;
  std::byte* to = StoreBytes(message.data(), binding.chunk.bytes);
  to = StoreBytes(to, binding.layer);
  StoreBytes(to, binding.epoch);
  return Kernel().hash(message.data(), message.size(), 0).low;
}

}  // namespace

Digest ComputeDigest(const PageBinding& binding, std::span<const std::byte> bytes) {
  const internal::RawDigest raw = Kernel().hash(bytes.data(), bytes.size(), SeedOf(binding));
  return {raw.low, raw.high};
}

Digest CopyWithDigest(const PageBinding& binding, std::span<const std::byte> source,
                      std::span<std::byte> destination) {
  TK_CHECK(source.size() == destination.size());
  const internal::RawDigest raw =
      Kernel().copy_and_hash(destination.data(), source.data(), source.size(), SeedOf(binding));
  return {raw.low, raw.high};
}

}  // namespace turnkeep
