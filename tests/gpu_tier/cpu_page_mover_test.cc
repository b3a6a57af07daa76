// The mover against plain indexing: what it takes from an engine's pages is the chunk page of
// core/layout.h, and it comes back to the same place, or rotated for another position.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "core/status.h"
#include "gpu_tier/cpu_page_mover.h"
#include "gpu_tier/host_device.h"
#include "kernels/element.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

constexpr uint32_t kPageTokens = 5;
constexpr uint32_t kPages = 16;

// An engine with two float32 layers: one full, one latent with scales.
class CpuPageMoverTest : public ::testing::Test {
 protected:
  CpuPageMoverTest() {
    layout_ = SmallLayout(1);
    layout_.layers[0].dtype = DType::kFloat32;
    layout_.layers.push_back({.kind = LayerKind::kLatent,
                              .dtype = DType::kInt8,
                              .latent_dim = 24,
                              .latent_rope_dim = 8,
                              .scale_kind = ScaleKind::kPerTokenHead});
    const PagedSpec full{.kind = PagedKind::kPageHeadKvToken,
                         .element_bytes = 4,
                         .page_tokens = kPageTokens,
                         .page_count = kPages,
                         .kv_heads = 2,
                         .key_dim = 16,
                         .value_dim = 16};
    const PagedSpec latent{.kind = PagedKind::kLatent,
                           .element_bytes = 1,
                           .page_tokens = kPageTokens,
                           .page_count = kPages,
                           .kv_heads = 1,
                           .key_dim = 24,
                           .value_dim = 8};
    full_.resize(PagedBytes(full).value());
    latent_.resize(PagedBytes(latent).value());
    scales_.resize(2 * kPages * kPageTokens * 4);
    layers_ = {
        {.planes = PlanesOf(full, full_.data(), 0).value()},
        {.planes = PlanesOf(latent, latent_.data(), 0).value(),
         .key_scales = ScalePlane(scales_.data(), kPageTokens, 1),
         .value_scales = ScalePlane(scales_.data() + kPages * kPageTokens * 4, kPageTokens, 1)}};
    for (uint32_t page = 0; page < kPages; ++page) table_.push_back((page * 7 + 3) % kPages);
    stream_ = device_.NewStream().value();
  }

  std::unique_ptr<CpuPageMover> Mover(int64_t first_position = 0) {
    return CpuPageMover::Make({.layout = layout_,
                               .layers = layers_,
                               .pages = table_,
                               .first_position = first_position})
        .value();
  }
  void FillEngine() {
    std::mt19937 random(11);
    for (auto* memory : {&latent_, &scales_})
      for (std::byte& byte : *memory) byte = static_cast<std::byte>(random());
    for (size_t i = 0; i + 4 <= full_.size(); i += 4) {
      const float value = static_cast<float>(random() % 2000) / 1000 - 1;
      std::memcpy(full_.data() + i, &value, 4);
    }
  }
  StagedPage Page(std::vector<std::byte>& bytes, uint32_t layer, uint64_t begin, uint32_t count) {
    bytes.resize(LayerPageBytes(layout_.layers[layer], count));
    return {.data = bytes.data(),
            .bytes = bytes.size(),
            .token_begin = begin,
            .token_count = count,
            .chunk_token_count = count,
            .stored_position = begin};
  }
  float Engine(uint64_t token, uint32_t head, uint32_t i, bool value) const {
    const uint64_t page = table_[token / kPageTokens];
    const uint64_t at =
        (((page * 2 + head) * 2 + (value ? 1 : 0)) * kPageTokens + token % kPageTokens) * 16 + i;
    float out;
    std::memcpy(&out, full_.data() + at * 4, 4);
    return out;
  }

  HostDevice device_;
  std::unique_ptr<DeviceStream> stream_;
  KvLayout layout_;
  std::vector<std::byte> full_, latent_, scales_;
  std::vector<EngineLayer> layers_;
  std::vector<uint32_t> table_;
};

TEST_F(CpuPageMoverTest, GathersThePlanesOfTheChunkPage) {
  FillEngine();
  const auto mover = Mover();
  std::vector<std::byte> bytes;
  const StagedPage page = Page(bytes, 0, 17, 23);
  ASSERT_TRUE(mover->Gather(*stream_, 0, {&page, 1}).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (uint32_t token = 0; token < 23; ++token) {
    for (uint32_t head = 0; head < 2; ++head) {
      for (uint32_t i = 0; i < 16; ++i) {
        float key, value;
        std::memcpy(&key, bytes.data() + ((token * 2 + head) * 16 + i) * 4, 4);
        std::memcpy(&value, bytes.data() + (((23 + token) * 2 + head) * 16 + i) * 4, 4);
        ASSERT_EQ(key, Engine(17 + token, head, i, false)) << token << " " << head << " " << i;
        ASSERT_EQ(value, Engine(17 + token, head, i, true)) << token << " " << head << " " << i;
      }
    }
  }
}

TEST_F(CpuPageMoverTest, ARoundTripLeavesEveryBitOfEveryLayer) {
  FillEngine();
  const auto full = full_;
  const auto latent = latent_;
  const auto scales = scales_;
  const auto mover = Mover();
  for (uint32_t layer = 0; layer < 2; ++layer) {
    std::vector<std::byte> a, b;
    const std::vector<StagedPage> pages = {Page(a, layer, 0, 64), Page(b, layer, 64, 16)};
    ASSERT_TRUE(mover->Gather(*stream_, layer, pages).ok());
    ASSERT_TRUE(stream_
                    ->Launch([&] {
                      auto clear = [](auto& memory) {
                        std::fill(memory.begin(), memory.end(), std::byte{0});
                      };
                      if (layer == 0) return clear(full_);
                      clear(latent_);
                      clear(scales_);
                    })
                    .ok());
    ASSERT_TRUE(mover->Scatter(*stream_, layer, pages).ok());
    ASSERT_TRUE(stream_->Synchronize().ok());
  }
  EXPECT_EQ(full, full_);
  EXPECT_EQ(latent, latent_);
  EXPECT_EQ(scales, scales_);
}

TEST_F(CpuPageMoverTest, APartOfAChunkGoesToItsTokensAlone) {
  FillEngine();
  std::vector<std::byte> bytes;
  StagedPage page = Page(bytes, 0, 0, 30);
  const auto mover = Mover();
  ASSERT_TRUE(mover->Gather(*stream_, 0, {&page, 1}).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  const auto before = full_;
  const float wanted = Engine(12, 1, 3, true);
  // Tokens 10..19 of the chunk become tokens 40..49, rotated for their new place.
  page.first_in_chunk = 10;
  page.token_begin = 40;
  page.token_count = 10;
  page.stored_position = 10;
  ASSERT_TRUE(mover->Scatter(*stream_, 0, {&page, 1}).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  EXPECT_EQ(Engine(42, 1, 3, true), wanted);
  for (uint64_t token : {39u, 50u}) {
    float old;
    const uint64_t at =
        ((uint64_t{table_[token / kPageTokens]} * 4) * kPageTokens + token % kPageTokens) * 16;
    std::memcpy(&old, before.data() + at * 4, 4);
    EXPECT_EQ(Engine(token, 0, 0, false), old) << token;
  }
  // Halves: dims 0 and 4 of a rotary dim of 8 are a pair of frequency inv_freq[0] = 1.
  float x, y;
  std::memcpy(&x, bytes.data() + ((12 * 2 + 1) * 16 + 0) * 4, 4);
  std::memcpy(&y, bytes.data() + ((12 * 2 + 1) * 16 + 4) * 4, 4);
  EXPECT_NEAR(Engine(42, 1, 0, false), x * std::cos(30.0) - y * std::sin(30.0), 1e-6);
  EXPECT_NEAR(Engine(42, 1, 4, false), x * std::sin(30.0) + y * std::cos(30.0), 1e-6);
  std::memcpy(&x, bytes.data() + ((12 * 2 + 1) * 16 + 9) * 4, 4);
  EXPECT_EQ(Engine(42, 1, 9, false), x);  // behind the rotary dim
}

// An engine that keeps raw keys beside the rotated ones: those are what is saved, both come back.
TEST_F(CpuPageMoverTest, RawKeysAreSavedAndComeBackBesideTheRotatedOnes) {
  FillEngine();
  layout_.rope.key_state = KeyState::kRaw;
  std::vector<std::byte> raw = full_;  // planes of the same shape; its values are not used
  for (size_t i = 0; i < raw.size(); i += 4) raw[i] ^= std::byte{1};
  EngineLayer& layer = layers_[0];
  layer.raw_keys = layer.planes.keys;
  layer.raw_keys.base = raw.data() + (layer.planes.keys.base - full_.data());
  const std::vector<std::byte> saved = raw;
  const auto mover = Mover();
  std::vector<std::byte> bytes;
  const StagedPage page = Page(bytes, 0, 10, 30);
  ASSERT_TRUE(mover->Gather(*stream_, 0, {&page, 1}).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  std::fill(raw.begin(), raw.end(), std::byte{0});
  ASSERT_TRUE(mover->Scatter(*stream_, 0, {&page, 1}).ok());
  ASSERT_TRUE(stream_->Synchronize().ok());
  for (uint64_t token = 10; token < 40; ++token) {
    const uint64_t page_index = table_[token / kPageTokens];
    const uint64_t row = ((page_index * 2 + 1) * 2 * kPageTokens + token % kPageTokens) * 16 * 4;
    ASSERT_EQ(std::memcmp(raw.data() + row, saved.data() + row, 64), 0) << token;
    float x, y;
    std::memcpy(&x, saved.data() + row, 4);
    std::memcpy(&y, saved.data() + row + 16, 4);
    const double angle = static_cast<double>(token);
    EXPECT_NEAR(Engine(token, 1, 0, false), x * std::cos(angle) - y * std::sin(angle), 1e-6);
  }
  layout_.rope.key_state = KeyState::kRotated;
  const auto refused =
      CpuPageMover::Make({.layout = layout_, .layers = layers_, .pages = table_}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
}

TEST_F(CpuPageMoverTest, WhatDoesNotFitIsRefusedByName) {
  const auto refused = [&](const CpuPageMoverOptions& options, const char* what) {
    const auto mover = CpuPageMover::Make(options);
    ASSERT_EQ(mover.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(mover.status().ToString().find(what), std::string::npos) << mover.status();
  };
  CpuPageMoverOptions options{.layout = layout_, .layers = layers_, .pages = table_};
  options.layers.pop_back();
  refused(options, "1 layers given for a layout of 2");
  options.layers = layers_;
  options.layers[1].value_scales.base = nullptr;
  refused(options, "layer 1: the engine has no value scales");
  options.layers = layers_;
  options.layers[0].planes.keys.dim = 24;
  refused(options, "layer 0: keys");
  options.layers = layers_;
  options.layout.layers[0] = {.kind = LayerKind::kState, .state_bytes = 100};
  refused(options, "recurrent state");
  std::vector<std::byte> bytes;
  const StagedPage behind = Page(bytes, 0, 70, 11);
  EXPECT_EQ(Mover()->Gather(*stream_, 0, {&behind, 1}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace turnkeep::testing
