// The bodies of the CUDA gather and scatter kernels, every thread of every block, executed on the
// CPU: the same places as gather.h for all layouts, and the same bits of rotated keys. What is left
// for a GPU is the launch, the barriers and the conversions of storage types.
#include "kernels/gather_cuda_body.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "kernels/element.h"
#include "kernels/gather.h"
#include "kernels/gather_cuda_batch.h"
#include "kernels/rotate_cuda_body.h"
#include "kernels/row_convert.h"
#include "testing/paged_bytes.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;
using testing::RandomBytes;
using testing::ShuffledPages;

template <typename Phase>
void ForEachThread(const Phase& phase) {
  for (uint32_t thread = 0; thread < kCudaMoveThreads; ++thread) phase(thread);
}

template <int kBytes>
void RunMove(const CudaMoveBatch& batch) {
  for (uint32_t run = 0; run < batch.run_count; ++run)
    for (uint32_t block = 0; block < MoveBlocks(batch); ++block)
      ForEachThread([&](uint32_t t) { cuda_body::Move<kBytes>(batch, block, run, t); });
}

template <int kBytes>
void RunTranspose(const CudaTransposeBatch& batch) {
  using namespace cuda_body;
  for (uint32_t run = 0; run < batch.move.run_count; ++run) {
    for (uint32_t block = 0; block < TransposeBlocks(batch); ++block) {
      TransposeTile<kBytes> tile;
      if (batch.move.to_dense != 0) {
        ForEachThread(
            [&](uint32_t t) { TransposePaged<kBytes, true>(batch, block, run, t, &tile); });
        ForEachThread(
            [&](uint32_t t) { TransposeDense<kBytes, false>(batch, block, run, t, &tile); });
      } else {
        ForEachThread(
            [&](uint32_t t) { TransposeDense<kBytes, true>(batch, block, run, t, &tile); });
        ForEachThread(
            [&](uint32_t t) { TransposePaged<kBytes, false>(batch, block, run, t, &tile); });
      }
    }
  }
}

void RunBatch(const PagedPlane& plane, const CudaMoveBatch& batch) {
  if (IsTransposed(plane, batch)) {
    const CudaTransposeBatch transposed = TransposeOf(plane, batch);
    if (batch.unit_bytes == 1) return RunTranspose<1>(transposed);
    if (batch.unit_bytes == 2) return RunTranspose<2>(transposed);
    return RunTranspose<4>(transposed);
  }
  switch (batch.unit_bytes) {
    case 1:
      return RunMove<1>(batch);
    case 2:
      return RunMove<2>(batch);
    case 4:
      return RunMove<4>(batch);
    case 8:
      return RunMove<8>(batch);
    case 16:
      return RunMove<16>(batch);
    default:
      FAIL() << "unit of " << batch.unit_bytes;
  }
}

// By the CPU's own conversion.
template <DType kType, typename BitsType>
struct CpuKey {
  using Float = std::conditional_t<kType == DType::kFloat32, double, float>;
  using Bits = BitsType;
  static Float Load(Bits bits) {
    return LoadElement(kType, reinterpret_cast<const std::byte*>(&bits));
  }
  static Bits Store(Float value) {
    const auto rounded = static_cast<float>(value);
    Bits bits;
    RowFromFloat(kType, &rounded, 1, reinterpret_cast<std::byte*>(&bits));
    return bits;
  }
};

template <class Key>
void RunRotate(const CudaRotateBatch& batch) {
  using namespace cuda_body;
  std::vector<uint64_t> shared(batch.shared_bytes / 8 + 2);
  auto* const rows =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
  auto* const angles = reinterpret_cast<Angle<typename Key::Float>*>(rows + batch.angles_offset);
  for (uint32_t run = 0; run < batch.move.run_count; ++run) {
    for (uint32_t block = 0; block < RotateBlocks(batch); ++block) {
      const RotatePlace place = RotatePlaceOf(batch, block, run);
      if (place.row_count == 0) continue;
      const uint64_t angle_count =
          (batch.per_token != 0 ? place.token_count : 1) * uint64_t{batch.pairs.divisor};
      ASSERT_LE(batch.angles_offset + angle_count * sizeof(*angles), batch.shared_bytes);
      ForEachThread([&](uint32_t t) { MoveRows<true>(batch, place, run, t, rows); });
      ForEachThread(
          [&](uint32_t t) { MakeAngles(batch, place, batch.move.runs[run].position, t, angles); });
      ForEachThread([&](uint32_t t) { RotateRows<Key>(batch, place, t, rows, angles); });
      ForEachThread([&](uint32_t t) { MoveRows<false>(batch, place, run, t, rows); });
    }
  }
}

void Rotate(DType dtype, const CudaRotateBatch& batch) {
  switch (dtype) {
    case DType::kFloat32:
      return RunRotate<CpuKey<DType::kFloat32, float>>(batch);
    case DType::kFloat16:
      return RunRotate<CpuKey<DType::kFloat16, uint16_t>>(batch);
    case DType::kBFloat16:
      return RunRotate<CpuKey<DType::kBFloat16, uint16_t>>(batch);
    case DType::kFp8E4M3:
      return RunRotate<CpuKey<DType::kFp8E4M3, uint8_t>>(batch);
    case DType::kFp8E5M2:
      return RunRotate<CpuKey<DType::kFp8E5M2, uint8_t>>(batch);
    case DType::kInt8:
      return RunRotate<CpuKey<DType::kInt8, int8_t>>(batch);
  }
}

// Runs that follow one another from anywhere: heads, tails and borders inside pages.
std::vector<CudaTokenRun> RandomRuns(std::mt19937_64& random, uint64_t capacity,
                                     const PagedPlane& plane, std::byte* dense) {
  std::vector<CudaTokenRun> runs;
  uint64_t token = random() % capacity;
  while (token < capacity && runs.size() < 5) {
    const auto count =
        static_cast<uint32_t>(std::min<uint64_t>(capacity - token, random() % (capacity / 2 + 2)));
    runs.push_back({.dense = dense, .first_token = token, .token_count = count});
    dense += DenseBytes(plane, count);
    token += count;
  }
  return runs;
}

void CheckSpec(const PagedSpec& spec, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> memory = RandomBytes(random, PagedBytes(spec).value());
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  const uint64_t capacity = uint64_t{spec.page_count} * spec.page_tokens;
  const auto planes = PlanesOf(spec, memory.data(), spec.layers - 1);
  ASSERT_TRUE(planes.ok()) << planes.status();
  for (const PagedPlane& plane : {planes->keys, planes->values}) {
    // Misaligned dense sides are moved in narrower units.
    for (const size_t offset : {size_t{0}, size_t{1} * spec.element_bytes, size_t{1}}) {
      SCOPED_TRACE("dense side at " + std::to_string(offset));
      std::vector<std::byte> dense(DenseBytes(plane, static_cast<uint32_t>(capacity)) + 16);
      std::vector<std::byte> expected = dense;
      const auto runs = RandomRuns(random, capacity, plane, dense.data() + offset);
      const auto gathers = CutIntoBatches(plane, pages, runs, {.to_dense = true});
      ASSERT_TRUE(gathers.ok()) << gathers.status();
      for (const CudaMoveBatch& batch : *gathers) RunBatch(plane, batch);
      for (const CudaTokenRun& run : runs)
        GatherPlane(plane, {pages, run.first_token, run.token_count},
                    expected.data() + (run.dense - dense.data()));
      ASSERT_EQ(dense, expected);

      const std::vector<std::byte> others = RandomBytes(random, dense.size());
      std::copy(others.begin(), others.end(), dense.begin());  // the runs point into it
      const std::vector<std::byte> before = memory;
      const auto scatters = CutIntoBatches(plane, pages, runs, {});
      ASSERT_TRUE(scatters.ok()) << scatters.status();
      for (const CudaMoveBatch& batch : *scatters) RunBatch(plane, batch);
      const std::vector<std::byte> made = memory;
      std::copy(before.begin(), before.end(), memory.begin());
      for (const CudaTokenRun& run : runs)
        ScatterPlane(plane, {pages, run.first_token, run.token_count}, run.dense);
      ASSERT_EQ(memory, made);
    }
  }
}

TEST(GatherCudaBody, EveryLayoutMovesAsOnTheCpu) {
  uint64_t seed = 1;
  for (const PagedKind kind :
       {PagedKind::kPageKvTokenHead, PagedKind::kKvPageTokenHead, PagedKind::kPageHeadKvToken,
        PagedKind::kSplitKeys, PagedKind::kLatent}) {
    for (const uint32_t element_bytes : {1u, 2u, 4u}) {
      for (const uint32_t page_tokens : {1u, 3u, 16u, 256u}) {
        for (const uint32_t kv_heads : {1u, 5u}) {
          for (const uint32_t dim : {8u, 48u, 576u}) {
            if (kind == PagedKind::kLatent && kv_heads != 1) continue;
            if (kind == PagedKind::kSplitKeys && dim * element_bytes % 16 != 0) continue;
            if (dim == 576 && (page_tokens > 16 || kv_heads > 1)) continue;
            const bool two_dims = kind == PagedKind::kLatent || kind == PagedKind::kSplitKeys;
            const PagedSpec spec{.kind = kind,
                                 .element_bytes = element_bytes,
                                 .page_tokens = page_tokens,
                                 .page_count = page_tokens > 16 ? 2u : 9u,
                                 .kv_heads = kv_heads,
                                 .key_dim = dim,
                                 .value_dim = two_dims ? dim + 8 > 576 ? 64 : dim + 8 : dim,
                                 .layers = kv_heads == 1 ? 3u : 1u};
            SCOPED_TRACE(std::string(NameOf(kind)) + " bytes " + std::to_string(element_bytes) +
                         " page " + std::to_string(page_tokens) + " heads " +
                         std::to_string(kv_heads) + " dim " + std::to_string(dim));
            CheckSpec(spec, ++seed);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// More runs and more pages than one launch takes.
TEST(GatherCudaBody, WhatDoesNotFitOneBatchGoesIntoSeveral) {
  const PagedSpec spec{.page_tokens = 2, .page_count = 8000, .key_dim = 8, .value_dim = 8};
  std::mt19937_64 random(3);
  std::vector<std::byte> memory = RandomBytes(random, PagedBytes(spec).value());
  const PagedPlane plane = PlanesOf(spec, memory.data(), 0)->values;
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  std::vector<std::byte> dense(DenseBytes(plane, 16000));
  std::vector<std::byte> expected = dense;
  std::vector<CudaTokenRun> runs;
  for (uint32_t token = 1; token < 15000;) {
    const uint32_t count = runs.size() == 500 ? 9001 : 3;
    runs.push_back({dense.data() + DenseBytes(plane, token), token, count, 0});
    token += count;
  }
  const auto batches = CutIntoBatches(plane, pages, runs, {.to_dense = true});
  ASSERT_TRUE(batches.ok()) << batches.status();
  ASSERT_GT(batches->size(), runs.size() / kCudaRunsAtOnce);
  for (const CudaMoveBatch& batch : *batches) RunBatch(plane, batch);
  for (const CudaTokenRun& run : runs)
    GatherPlane(plane, {pages, run.first_token, run.token_count},
                expected.data() + (run.dense - dense.data()));
  EXPECT_EQ(dense, expected);
}

RopeSpec RopeOf(RopePairing pairing, KeyState state, uint32_t rotary_dim) {
  RopeSpec rope{.pairing = pairing, .rotary_dim = rotary_dim, .key_state = state};
  rope.attention_scale = 1.25f;
  for (uint32_t i = 0; i < rotary_dim / 2; ++i)
    rope.inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(2 * i) / rotary_dim));
  return rope;
}

void CheckRotation(const PagedSpec& spec, DType dtype, const RopeSpec& rope, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> memory(PagedBytes(spec).value());
  const PagedLayer planes = PlanesOf(spec, memory.data(), 0).value();
  const PagedPlane& plane = spec.kind == PagedKind::kLatent ? planes.values : planes.keys;
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  const uint64_t capacity = uint64_t{spec.page_count} * spec.page_tokens;
  std::vector<std::byte> dense(DenseBytes(plane, static_cast<uint32_t>(capacity)));
  std::normal_distribution<float> normal(0, dtype == DType::kInt8 ? 30.0f : 1.0f);
  for (size_t i = 0; i < dense.size(); i += spec.element_bytes)
    StoreElement(dtype, normal(random), &dense[i]);
  std::vector<CudaTokenRun> runs = RandomRuns(random, capacity, plane, dense.data());
  const bool raw = rope.key_state == KeyState::kRaw;
  for (CudaTokenRun& run : runs)
    run.position =
        raw ? static_cast<int64_t>(run.first_token) + 100'000 : -4096 - 7 * run.token_count;
  const auto batches = CutIntoBatches(plane, pages, runs, {.merge_heads = false});
  ASSERT_TRUE(batches.ok()) << batches.status();
  for (const CudaMoveBatch& batch : *batches) {
    const auto rotated = RotateOf(plane, batch, dtype, rope);
    ASSERT_TRUE(rotated.ok()) << rotated.status();
    ASSERT_LE(rotated->shared_bytes, 48u * 1024);
    Rotate(dtype, *rotated);
  }
  for (const CudaTokenRun& run : runs) {
    const Rotation rotation = raw ? Rotation::Apply(rope, run.position, run.token_count)
                                  : Rotation::Shift(rope, run.position);
    std::vector<std::byte> kernel(DenseBytes(plane, run.token_count));
    GatherPlane(plane, {pages, run.first_token, run.token_count}, kernel.data());
    std::vector<std::byte> cpu(kernel.size());
    rotation.Rotate(dtype, plane.heads, plane.dim, 0, run.token_count, run.dense, cpu.data());
    ASSERT_EQ(kernel, cpu);
  }
}

TEST(GatherCudaBody, RotatedKeysHaveTheBitsOfTheCpu) {
  uint64_t seed = 1;
  for (const PagedKind kind : {PagedKind::kPageKvTokenHead, PagedKind::kPageHeadKvToken,
                               PagedKind::kSplitKeys, PagedKind::kLatent}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFp8E4M3,
                              DType::kFp8E5M2, DType::kInt8}) {
      for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
        for (const KeyState state : {KeyState::kRaw, KeyState::kRotated}) {
          for (const uint32_t dim : {16u, 80u, 576u}) {
            const uint32_t heads = kind == PagedKind::kLatent ? 1 : dim == 16 ? 13 : 3;
            const PagedSpec spec{.kind = kind,
                                 .element_bytes = DTypeBytes(dtype),
                                 .page_tokens = 5,
                                 .page_count = 6,
                                 .kv_heads = heads,
                                 .key_dim = dim,
                                 .value_dim = dim};
            SCOPED_TRACE(std::string(NameOf(kind)) + " dtype " +
                         std::to_string(static_cast<int>(dtype)) + " pairing " +
                         std::to_string(static_cast<int>(pairing)) + " state " +
                         std::to_string(static_cast<int>(state)) + " dim " + std::to_string(dim));
            CheckRotation(spec, dtype, RopeOf(pairing, state, dim == 80 ? 24 : dim), ++seed);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(GatherCudaBody, ADivisorDividesEverythingBelowTwoToThe31) {
  std::mt19937_64 random(9);
  for (int round = 0; round < 2000; ++round) {
    const auto divisor = static_cast<uint32_t>(
        round < 600 ? round + 1 : 1 + random() % (uint64_t{1} << (1 + random() % 31)));
    const CudaDivisor d = CudaDivisor::Of(divisor);
    for (int i = 0; i < 50; ++i) {
      const uint64_t multiple = random() % (((uint64_t{1} << 31) - 1) / divisor + 1) * divisor;
      for (const uint64_t n : {multiple, multiple - 1, random() % (uint64_t{1} << 31)}) {
        if (n >= uint64_t{1} << 31) continue;
        ASSERT_EQ(d.Quotient(static_cast<uint32_t>(n)), n / divisor) << n << " / " << divisor;
      }
    }
  }
}

// Refused before any call to CUDA, so this runs everywhere.
TEST(GatherCuda, BadArgumentsAreNamed) {
  std::vector<std::byte> memory(4096);
  std::vector<std::byte> dense(4096);
  const PagedSpec spec{.page_tokens = 4, .page_count = 2, .key_dim = 16, .value_dim = 16};
  const PagedPlane good = PlanesOf(spec, memory.data(), 0)->keys;
  const std::vector<uint32_t> pages = {0, 1};
  const CudaTokenRun all{.dense = dense.data(), .first_token = 0, .token_count = 8, .position = 1};
  const auto refused = [&](const PagedPlane& plane, const CudaTokenRun& run, const char* what) {
    for (const absl::Status& status : {CudaGather(plane, pages, {&run, 1}, nullptr),
                                       CudaScatter(plane, pages, {&run, 1}, nullptr)}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(MessageOf(status), HasSubstr(what));
    }
  };
  PagedPlane plane = good;
  plane.base = nullptr;
  refused(plane, all, "no memory");
  plane = good;
  plane.element_bytes = 3;
  refused(plane, all, "element_bytes 3");
  plane = good;
  plane.block_dim = 5;
  refused(plane, all, "blocks of 5");
  plane = good;
  plane.dim = 0;
  refused(plane, all, "0 elements");
  CudaTokenRun run = all;
  run.token_count = 9;
  refused(good, run, "9 tokens from 0 of a context whose 2 pages hold 8");
  run = all;
  run.dense = nullptr;
  refused(good, run, "without a dense side");

  const auto not_rotated = [&](DType dtype, const RopeSpec& rope, const char* what) {
    const absl::Status status = CudaScatterRotated(good, pages, {&all, 1}, dtype, rope, nullptr);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(status), HasSubstr(what));
  };
  RopeSpec rope = RopeOf(RopePairing::kHalves, KeyState::kRotated, 16);
  not_rotated(DType::kFloat32, rope, "keys of 4 bytes in a plane of 2");
  rope.inv_freq.pop_back();
  not_rotated(DType::kFloat16, rope, "7 frequencies");
  not_rotated(DType::kFloat16, RopeOf(RopePairing::kHalves, KeyState::kRotated, 18),
              "rotary dim of 18");
  // Nothing to move is no error, with or without a device.
  EXPECT_EQ(CudaGather(good, pages, {}, nullptr), absl::OkStatus());
}

}  // namespace
}  // namespace turnkeep
