#include "core/digest.h"

#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <xxhash.h>

#include "core/digest_kernel.h"

namespace turnkeep {
namespace {

constexpr unsigned kSeed = 424242;

std::vector<std::byte> RandomBytes(size_t size) {
  std::mt19937_64 random(kSeed + size);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Around every block and stripe boundary of the hash and of the copy.
std::vector<size_t> Sizes() {
  std::vector<size_t> sizes;
  for (const size_t edge : {0, 16, 128, 240, 256, 1024, 4096, 16384, 32768, 65536, 262144}) {
    for (int delta = -65; delta <= 65; delta += 13) {
      if (static_cast<int64_t>(edge) + delta >= 0) sizes.push_back(edge + delta);
    }
    sizes.push_back(edge);
  }
  return sizes;
}

TEST(Digest, CopyGivesTheDigestOfTheBytesAndTheBytes) {
  PageBinding binding{.layer = 3, .epoch = 17};
  binding.chunk.bytes[5] = 1;
  for (const size_t size : Sizes()) {
    for (const size_t offset : {1, 16, 64}) {  // aligned for nothing, for a vector, for a line
      const std::vector<std::byte> source = RandomBytes(size + 3);
      std::vector<std::byte> destination(size + 5 + offset, std::byte{0xEE});
      const auto from = std::span(source).subspan(3);
      const auto to = std::span(destination).subspan(offset, size);
      const Digest digest = CopyWithDigest(binding, from, to);
      EXPECT_EQ(digest, ComputeDigest(binding, from)) << size;
      EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin())) << size;
      EXPECT_EQ(destination[offset - 1], std::byte{0xEE});
      EXPECT_EQ(destination[offset + size], std::byte{0xEE}) << size;
    }
  }
}

TEST(Digest, KernelsGiveTheSameBitsAsXxh3) {
  std::vector<internal::DigestKernel> kernels = {internal::kDigestKernelBaseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) kernels.push_back(internal::kDigestKernelAvx2);
#endif
  for (const size_t size : Sizes()) {
    const std::vector<std::byte> bytes = RandomBytes(size);
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}, uint64_t{0x123456789}}) {
      const XXH128_hash_t expected = XXH3_128bits_withSeed(bytes.data(), size, seed);
      for (const internal::DigestKernel& kernel : kernels) {
        const internal::RawDigest hash = kernel.hash(bytes.data(), size, seed);
        EXPECT_EQ(hash.low, expected.low64) << size;
        EXPECT_EQ(hash.high, expected.high64) << size;
        std::vector<std::byte> copy(size);
        const internal::RawDigest copied =
            kernel.copy_and_hash(copy.data(), bytes.data(), size, seed);
        EXPECT_EQ(copied.low, expected.low64) << size << " seed " << seed;
        EXPECT_EQ(copied.high, expected.high64) << size << " seed " << seed;
        EXPECT_EQ(copy, bytes);
      }
    }
  }
}

TEST(Digest, IsBoundToChunkLayerAndEpoch) {
  for (const size_t size : {size_t{0}, size_t{64}, size_t{4096}, size_t{100000}}) {
    const std::vector<std::byte> bytes = RandomBytes(size);
    const PageBinding binding{.layer = 1, .epoch = 1};
    PageBinding other_chunk = binding;
    other_chunk.chunk.bytes[31] = 1;
    PageBinding other_layer = binding;
    other_layer.layer = 2;
    PageBinding other_epoch = binding;
    other_epoch.epoch = 2;
    const Digest digest = ComputeDigest(binding, bytes);
    EXPECT_NE(digest, ComputeDigest(other_chunk, bytes));
    EXPECT_NE(digest, ComputeDigest(other_layer, bytes));
    EXPECT_NE(digest, ComputeDigest(other_epoch, bytes));
    EXPECT_EQ(digest, ComputeDigest(binding, bytes));
  }
}

TEST(Digest, SeesEverySingleFlippedBitOfASmallPage) {
  std::vector<std::byte> bytes = RandomBytes(1024);
  const PageBinding binding{.layer = 1, .epoch = 1};
  const Digest digest = ComputeDigest(binding, bytes);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    EXPECT_NE(ComputeDigest(binding, bytes), digest) << bit;
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

}  // namespace
}  // namespace turnkeep
