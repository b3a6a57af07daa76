// Gather, scatter, rotation and the page mover on CUDA against their CPU counterparts. What needs
// no device runs everywhere; the rest skips where CUDA sees none.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/cpu_page_mover.h"
#include "gpu_tier/cuda_page_mover.h"
#include "gpu_tier/host_device.h"
#include "gpu_tier/layer_restore.h"
#include "gpu_tier/layer_save.h"
#include "kernels/element.h"
#include "kernels/gather.h"
#include "kernels/gather_cuda.h"
#include "store/store.h"
#include "testing/layouts.h"
#include "testing/paged_bytes.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

constexpr PagedKind kKinds[] = {PagedKind::kPageKvTokenHead, PagedKind::kKvPageTokenHead,
                                PagedKind::kPageHeadKvToken, PagedKind::kSplitKeys,
                                PagedKind::kLatent};
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                             DType::kFp8E4M3, DType::kFp8E5M2, DType::kInt8};

class CudaGatherTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (CudaDevice::Count() == 0) GTEST_SKIP() << "CUDA sees no device";
    auto device = CudaDevice::Open(0);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    stream_ = device_->NewStream().value();
  }
  void* on() { return stream_->native_handle(); }

  DeviceMemory ToDevice(const std::vector<std::byte>& from) {
    DeviceMemory memory = device_->Allocate(from.size()).value();
    EXPECT_EQ(stream_->Copy(CopyKind::kToDevice, memory.data(), from.data(), from.size()),
              absl::OkStatus());
    return memory;
  }
  std::vector<std::byte> FromDevice(const DeviceMemory& memory) {
    std::vector<std::byte> out(memory.size());
    EXPECT_EQ(stream_->Copy(CopyKind::kToHost, out.data(), memory.data(), out.size()),
              absl::OkStatus());
    EXPECT_EQ(stream_->Synchronize(), absl::OkStatus());
    return out;
  }
  void CheckMoves(const PagedSpec& spec, uint64_t seed);
  void CheckRotation(const PagedSpec& spec, DType dtype, const RopeSpec& rope, uint64_t seed);

  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<DeviceStream> stream_;
};

std::vector<std::byte> RandomKeys(std::mt19937_64& random, DType dtype, uint64_t bytes) {
  std::normal_distribution<float> normal(0, dtype == DType::kInt8 ? 30.0f : 1.0f);
  std::vector<std::byte> keys(bytes);
  for (size_t i = 0; i < bytes; i += DTypeBytes(dtype))
    StoreElement(dtype, normal(random), &keys[i]);
  return keys;
}

// Runs behind one another from anywhere; `dense` is where their bytes begin.
std::vector<CudaTokenRun> RandomRuns(std::mt19937_64& random, uint64_t capacity,
                                     const PagedPlane& plane, std::byte* dense) {
  std::vector<CudaTokenRun> runs;
  uint64_t token = random() % capacity;
  while (token < capacity && runs.size() < 300) {
    const auto count = static_cast<uint32_t>(std::min<uint64_t>(
        capacity - token, 1 + random() % (random() % 8 == 0 ? capacity / 7 + 2 : 9)));
    runs.push_back({.dense = dense, .first_token = token, .token_count = count});
    dense += DenseBytes(plane, count);
    token += count;
  }
  return runs;
}
PagedPlane At(PagedPlane plane, const std::byte* from, std::byte* to) {
  plane.base = to + (plane.base - from);
  return plane;
}

void CudaGatherTest::CheckMoves(const PagedSpec& spec, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> memory = RandomBytes(random, PagedBytes(spec).value());
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  const uint64_t capacity = uint64_t{spec.page_count} * spec.page_tokens;
  const PagedLayer planes = PlanesOf(spec, memory.data(), spec.layers - 1).value();
  for (const PagedPlane& plane : {planes.keys, planes.values}) {
    const DeviceMemory engine = ToDevice(memory);
    const PagedPlane there = At(plane, memory.data(), engine.data());
    std::vector<std::byte> dense(DenseBytes(plane, static_cast<uint32_t>(capacity)) + 16);
    const size_t offset = random() % 3 == 0 ? 1 : 0;  // misaligned now and then
    DeviceMemory chunk = ToDevice(dense);
    auto runs = RandomRuns(random, capacity, plane, chunk.data() + offset);
    ASSERT_EQ(CudaGather(there, pages, runs, on()), absl::OkStatus());
    for (const CudaTokenRun& run : runs)
      GatherPlane(plane, {pages, run.first_token, run.token_count},
                  dense.data() + (run.dense - chunk.data()));
    ASSERT_EQ(FromDevice(chunk), dense) << "gather";

    dense = RandomBytes(random, dense.size());
    chunk = ToDevice(dense);
    runs = RandomRuns(random, capacity, plane, chunk.data() + offset);
    ASSERT_EQ(CudaScatter(there, pages, runs, on()), absl::OkStatus());
    for (const CudaTokenRun& run : runs)
      ScatterPlane(plane, {pages, run.first_token, run.token_count},
                   dense.data() + (run.dense - chunk.data()));
    ASSERT_EQ(FromDevice(engine), memory) << "scatter";
  }
}

TEST_F(CudaGatherTest, EveryLayoutMovesAsOnTheCpu) {
  uint64_t seed = 1;
  for (const PagedKind kind : kKinds) {
    for (const uint32_t element_bytes : {1u, 2u, 4u}) {
      for (const uint32_t page_tokens : {1u, 3u, 16u, 64u, 256u}) {
        for (const uint32_t kv_heads : {1u, 5u, 8u}) {
          for (const uint32_t dim : {8u, 48u, 128u, 576u}) {
            if (kind == PagedKind::kLatent && kv_heads != 1) continue;
            if (kind == PagedKind::kSplitKeys && dim * element_bytes % 16 != 0) continue;
            const bool two_dims = kind == PagedKind::kLatent || kind == PagedKind::kSplitKeys;
            const PagedSpec spec{.kind = kind,
                                 .element_bytes = element_bytes,
                                 .page_tokens = page_tokens,
                                 .page_count = page_tokens > 16 ? 3u : 40u,
                                 .kv_heads = kv_heads,
                                 .key_dim = dim,
                                 .value_dim = two_dims ? dim + 8 > 576 ? 64 : dim + 8 : dim,
                                 .layers = kv_heads == 5 ? 3u : 1u};
            SCOPED_TRACE(std::string(NameOf(kind)) + " bytes " + std::to_string(element_bytes) +
                         " page " + std::to_string(page_tokens) + " heads " +
                         std::to_string(kv_heads) + " dim " + std::to_string(dim) + " seed " +
                         std::to_string(seed));
            CheckMoves(spec, seed++);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(CudaGatherTest, MoreRunsAndPagesThanOneLaunchTakes) {
  CheckMoves({.page_tokens = 2, .page_count = 8000, .key_dim = 8, .value_dim = 8}, 3);
  CheckMoves({.page_tokens = 1, .page_count = 8000, .key_dim = 8, .value_dim = 8}, 4);
}

RopeSpec RopeOf(RopePairing pairing, KeyState state, uint32_t rotary_dim) {
  RopeSpec rope{.pairing = pairing, .rotary_dim = rotary_dim, .key_state = state};
  rope.attention_scale = 1.25f;
  for (uint32_t i = 0; i < rotary_dim / 2; ++i)
    rope.inv_freq.push_back(
        std::pow(10000.0f, -static_cast<float>(2 * i) / static_cast<float>(rotary_dim)));
  return rope;
}

// The distance of neighbours relative to a value, and of the smallest ones.
std::pair<double, double> SpacingOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {0x1p-23, 0x1p-149};
    case DType::kFloat16:
      return {0x1p-10, 0x1p-24};
    case DType::kBFloat16:
      return {0x1p-7, 0x1p-133};
    case DType::kFp8E4M3:
      return {0x1p-3, 0x1p-9};
    case DType::kFp8E5M2:
      return {0x1p-2, 0x1p-16};
    case DType::kInt8:
      break;
  }
  return {0, 1};
}

// The same bits but for one element in a thousand, which may be a neighbour: sine and cosine of two
// libraries differ in the last place of a double, and arithmetic carries it to a rounding.
void ExpectSameKeys(DType dtype, const std::vector<std::byte>& made,
                    const std::vector<std::byte>& cpu) {
  ASSERT_EQ(made.size(), cpu.size());
  const uint32_t bytes = DTypeBytes(dtype);
  const auto [relative, smallest] = SpacingOf(dtype);
  size_t different = 0;
  for (size_t i = 0; i < made.size(); i += bytes) {
    if (std::memcmp(&made[i], &cpu[i], bytes) == 0) continue;
    ++different;
    const double expected = LoadElement(dtype, &cpu[i]);
    ASSERT_NEAR(LoadElement(dtype, &made[i]), expected,
                std::max(std::abs(expected) * relative, smallest))
        << "element " << i / bytes;
  }
  EXPECT_LE(different, made.size() / bytes / 1000 + 1);
}

void CudaGatherTest::CheckRotation(const PagedSpec& spec, DType dtype, const RopeSpec& rope,
                                   uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> memory(PagedBytes(spec).value());
  const PagedLayer planes = PlanesOf(spec, memory.data(), 0).value();
  const PagedPlane& plane = spec.kind == PagedKind::kLatent ? planes.values : planes.keys;
  const std::vector<uint32_t> pages = ShuffledPages(spec.page_count);
  const uint64_t capacity = uint64_t{spec.page_count} * spec.page_tokens;
  const std::vector<std::byte> dense =
      RandomKeys(random, dtype, DenseBytes(plane, static_cast<uint32_t>(capacity)));
  const DeviceMemory engine = ToDevice(memory);
  const DeviceMemory chunk = ToDevice(dense);
  std::vector<CudaTokenRun> runs = RandomRuns(random, capacity, plane, chunk.data());
  const bool raw = rope.key_state == KeyState::kRaw;
  for (CudaTokenRun& run : runs)
    run.position = raw                 ? static_cast<int64_t>(run.first_token) + 1'000'000
                   : random() % 4 == 0 ? 0
                                       : -4096 - 7 * static_cast<int64_t>(run.token_count);
  ASSERT_EQ(
      CudaScatterRotated(At(plane, memory.data(), engine.data()), pages, runs, dtype, rope, on()),
      absl::OkStatus());
  for (const CudaTokenRun& run : runs) {
    ScatterRotated(plane, {pages, run.first_token, run.token_count},
                   dense.data() + (run.dense - chunk.data()), dtype,
                   raw ? Rotation::Apply(rope, run.position, run.token_count)
                       : Rotation::Shift(rope, run.position));
  }
  ExpectSameKeys(dtype, FromDevice(engine), memory);
}

TEST_F(CudaGatherTest, KeysAreRotatedAsOnTheCpu) {
  uint64_t seed = 1;
  for (const PagedKind kind : kKinds) {
    for (const DType dtype : kDTypes) {
      for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
        for (const KeyState state : {KeyState::kRaw, KeyState::kRotated}) {
          for (const uint32_t dim : {16u, 80u, 128u, 576u}) {
            const uint32_t heads = kind == PagedKind::kLatent ? 1 : dim == 16 ? 13 : 8;
            const PagedSpec spec{.kind = kind,
                                 .element_bytes = DTypeBytes(dtype),
                                 .page_tokens = dim == 128 ? 16u : 5u,
                                 .page_count = 12,
                                 .kv_heads = heads,
                                 .key_dim = dim,
                                 .value_dim = dim};
            SCOPED_TRACE(std::string(NameOf(kind)) + " dtype " +
                         std::to_string(static_cast<int>(dtype)) + " pairing " +
                         std::to_string(static_cast<int>(pairing)) + " state " +
                         std::to_string(static_cast<int>(state)) + " dim " + std::to_string(dim) +
                         " seed " + std::to_string(seed));
            CheckRotation(spec, dtype, RopeOf(pairing, state, dim == 80 ? 24 : dim), seed++);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// An engine of three layers: full, latent int8 with scales, values only.
constexpr uint32_t kPageTokens = 5;
constexpr uint32_t kPages = 32;

class Engine {
 public:
  explicit Engine(std::byte* memory) : memory_(memory) {
    layout_ = SmallLayout(1);
    layout_.layers.push_back({.kind = LayerKind::kLatent,
                              .dtype = DType::kInt8,
                              .latent_dim = 24,
                              .latent_rope_dim = 8,
                              .scale_kind = ScaleKind::kPerTokenHead});
    layout_.layers.push_back({.kind = LayerKind::kValueOnly,
                              .dtype = DType::kBFloat16,
                              .kv_heads = 2,
                              .value_dim = 16,
                              .key_source_layer = 0});
    Add({.kind = PagedKind::kPageHeadKvToken, .kv_heads = 2, .key_dim = 16, .value_dim = 16});
    Add({.kind = PagedKind::kLatent, .element_bytes = 1, .key_dim = 24, .value_dim = 8});
    for (PagedPlane* scales : {&layers_[1].key_scales, &layers_[1].value_scales}) {
      *scales = ScalePlane(memory_ + bytes_, kPageTokens, 1);
      bytes_ += kPages * kPageTokens * 4;
    }
    Add({.kind = PagedKind::kSplitKeys, .kv_heads = 2, .key_dim = 16, .value_dim = 16});
  }
  static uint64_t Bytes() { return Engine(nullptr).bytes_; }
  const KvLayout& layout() const { return layout_; }
  PageMoverOptions MoverOptions(int64_t first_position = 0) const {
    return {.layout = layout_,
            .layers = layers_,
            .pages = ShuffledPages(kPages),
            .first_position = first_position};
  }

 private:
  void Add(PagedSpec spec) {
    spec.page_tokens = kPageTokens;
    spec.page_count = kPages;
    layers_.push_back({.planes = PlanesOf(spec, memory_ + bytes_, 0).value()});
    bytes_ += PagedBytes(spec).value();
  }

  std::byte* const memory_;
  uint64_t bytes_ = 256;  // so that no plane begins at null
  KvLayout layout_;
  std::vector<EngineLayer> layers_;
};

std::vector<StagedPage> PagesOf(const LayerSpec& layer, std::byte* memory, uint64_t* bytes) {
  std::vector<StagedPage> pages;
  *bytes = 0;
  for (const uint32_t first : {0u, 64u}) {
    const uint32_t count = first == 0 ? 64 : 31;
    pages.push_back({.data = memory + *bytes,
                     .bytes = LayerPageBytes(layer, count),
                     .token_begin = first,
                     .token_count = count,
                     .chunk_token_count = count,
                     .stored_position = first});
    *bytes += (pages.back().bytes + 255) / 256 * 256;
  }
  return pages;
}

// Needs no device: what does not fit is refused before any call to CUDA.
TEST(CudaPageMover, RefusesWhatDoesNotFit) {
  std::vector<std::byte> memory(Engine::Bytes());
  const Engine engine(memory.data());
  PageMoverOptions options = engine.MoverOptions();
  options.layers.pop_back();
  EXPECT_THAT(MessageOf(CudaPageMover::Make(0, options).status()), HasSubstr("2 layers given"));
  options = engine.MoverOptions();
  options.layers[1].value_scales.base = nullptr;
  EXPECT_THAT(MessageOf(CudaPageMover::Make(0, options).status()), HasSubstr("no value scales"));
  const auto mover = CudaPageMover::Make(0, engine.MoverOptions());
  ASSERT_TRUE(mover.ok()) << mover.status();
  HostDevice host;
  const auto stream = host.NewStream().value();
  const absl::Status status = (*mover)->Gather(*stream, 0, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(status), HasSubstr("not one of a CUDA device"));
  EXPECT_THAT(MessageOf((*mover)->Scatter(*stream, 3, {})), HasSubstr("layer 3 of a layout of 3"));
}

TEST_F(CudaGatherTest, TheMoverTakesAndGivesWhatTheCpuMoverDoes) {
  std::mt19937_64 random(17);
  std::vector<std::byte> memory = RandomBytes(random, Engine::Bytes());
  const DeviceMemory there = ToDevice(memory);
  const Engine cpu_engine(memory.data());
  const Engine cuda_engine(there.data());
  HostDevice host;
  const auto host_stream = host.NewStream().value();
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const LayerSpec& spec = cpu_engine.layout().layers[layer];
    uint64_t bytes = 0;
    PagesOf(spec, nullptr, &bytes);
    std::vector<std::byte> staged(bytes);
    DeviceMemory staged_there = ToDevice(staged);
    const auto cpu = CpuPageMover::Make(cpu_engine.MoverOptions()).value();
    const auto cuda = CudaPageMover::Make(*device_, cuda_engine.MoverOptions()).value();
    ASSERT_EQ(cpu->Gather(*host_stream, layer, PagesOf(spec, staged.data(), &bytes)),
              absl::OkStatus());
    ASSERT_EQ(cuda->Gather(*stream_, layer, PagesOf(spec, staged_there.data(), &bytes)),
              absl::OkStatus());
    ASSERT_EQ(host_stream->Synchronize(), absl::OkStatus());
    ASSERT_EQ(FromDevice(staged_there), staged) << "gather of layer " << layer;

    staged = RandomBytes(random, bytes);
    staged_there = ToDevice(staged);
    ASSERT_EQ(cpu->Scatter(*host_stream, layer, PagesOf(spec, staged.data(), &bytes)),
              absl::OkStatus());
    ASSERT_EQ(cuda->Scatter(*stream_, layer, PagesOf(spec, staged_there.data(), &bytes)),
              absl::OkStatus());
    ASSERT_EQ(host_stream->Synchronize(), absl::OkStatus());
    ASSERT_EQ(FromDevice(there), memory) << "scatter of layer " << layer;
  }
  // Moved by 30 positions: keys of the first layer turn, its values do not.
  uint64_t bytes = 0;
  const LayerSpec& spec = cpu_engine.layout().layers[0];
  PagesOf(spec, nullptr, &bytes);
  std::vector<std::byte> staged = RandomKeys(random, spec.dtype, bytes);
  DeviceMemory staged_there = ToDevice(staged);
  const auto cpu = CpuPageMover::Make(cpu_engine.MoverOptions(-30)).value();
  ASSERT_EQ(cpu->Scatter(*host_stream, 0, PagesOf(spec, staged.data(), &bytes)), absl::OkStatus());
  const auto cuda = CudaPageMover::Make(*device_, cuda_engine.MoverOptions(-30)).value();
  ASSERT_EQ(cuda->Scatter(*stream_, 0, PagesOf(spec, staged_there.data(), &bytes)),
            absl::OkStatus());
  ASSERT_EQ(host_stream->Synchronize(), absl::OkStatus());
  const std::vector<std::byte> made = FromDevice(there);
  const uint64_t layer_bytes = uint64_t{kPages} * kPageTokens * 2 * 2 * 16 * 2;
  const auto layer_of = [&](const std::vector<std::byte>& all) {
    return std::vector<std::byte>(all.begin() + 256,
                                  all.begin() + 256 + static_cast<ptrdiff_t>(layer_bytes));
  };
  ExpectSameKeys(DType::kFloat16, layer_of(made), layer_of(memory));
}

// Saved from one engine on the device and restored into another, through a real store.
TEST_F(CudaGatherTest, LayersGoThroughTheStoreAndComeBackBitForBit) {
  std::mt19937_64 random(23);
  const std::vector<std::byte> memory = RandomBytes(random, Engine::Bytes());
  const DeviceMemory saved = ToDevice(memory);
  const DeviceMemory restored = ToDevice(std::vector<std::byte>(memory.size()));
  const Engine from(saved.data());
  const Engine to(restored.data());
  std::vector<uint32_t> tokens(kPages * kPageTokens - 7);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % 32'000);
  const auto store = Store::Open({.host_bytes = 64 << 20, .host_segment_bytes = 4 << 20}).value();
  const auto kv = store->ForTenant("test").value();
  const Fingerprint fingerprint = kv->RegisterLayout(from.layout()).value();

  const auto from_mover = CudaPageMover::Make(*device_, from.MoverOptions()).value();
  auto saving =
      kv->BeginSave({.session = "s", .layout = fingerprint, .prompt = {.tokens = tokens}});
  ASSERT_TRUE(saving.ok()) << saving.status();
  const auto save =
      LayerSave::Start(*device_, from.layout(), *std::move(saving), *from_mover, {}).value();
  for (uint32_t layer = 0; layer < 3; ++layer)
    ASSERT_EQ(save->LayerComputed(layer, *stream_), absl::OkStatus());
  const auto committed = save->Commit(absl::Seconds(60));
  ASSERT_TRUE(committed.ok()) << committed.status();

  const auto to_mover = CudaPageMover::Make(*device_, to.MoverOptions()).value();
  auto restoring = kv->BeginRestore({.session = "s", .layout = fingerprint});
  ASSERT_TRUE(restoring.ok()) << restoring.status();
  const auto restore =
      LayerRestore::Start(*device_, to.layout(), *std::move(restoring), {}).value();
  ASSERT_EQ(restore->Bind(*to_mover), absl::OkStatus());
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const auto there = restore->WaitLayer(layer, *stream_);
    ASSERT_TRUE(there.ok()) << there.status();
    EXPECT_EQ(*there, tokens.size());
  }
  const std::vector<std::byte> made = FromDevice(restored);
  // Taken out of both engines again, token by token, by the CPU.
  std::vector<std::byte> before = memory;
  std::vector<std::byte> after = made;
  const Engine a(before.data());
  const Engine b(after.data());
  for (uint32_t layer = 0; layer < 3; ++layer) {
    const auto planes_of = [&](const Engine& engine) {
      return PlanesOfLayers(engine.MoverOptions()).value()[layer];
    };
    const auto left = planes_of(a);
    const auto right = planes_of(b);
    const std::vector<uint32_t> pages = ShuffledPages(kPages);
    for (size_t i = 0; i < left.size(); ++i) {
      const auto count = static_cast<uint32_t>(tokens.size());
      std::vector<std::byte> x(DenseBytes(left[i].engine, count));
      std::vector<std::byte> y(x.size());
      GatherPlane(left[i].engine, {pages, 0, count}, x.data());
      GatherPlane(right[i].engine, {pages, 0, count}, y.data());
      EXPECT_EQ(x, y) << "layer " << layer << " plane " << i;
    }
  }
}

}  // namespace
}  // namespace turnkeep::testing
