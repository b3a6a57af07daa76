// Every missing or contradictory field is refused by name.
#include <functional>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/layout.h"
#include "core/status.h"
#include "testing/layouts.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;
using turnkeep::testing::LayoutOfAllKinds;
using turnkeep::testing::SmallLayout;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Layers of LayoutOfAllKinds().
enum : size_t {
  kFullLayer,
  kValueOnlyLayer,
  kLatentLayer,
  kLowRankLayer,
  kWindowLayer,
  kStateLayer
};

struct Case {
  std::string message;
  std::function<void(KvLayout&)> change;
};

void ExpectRefused(const std::vector<Case>& cases) {
  ASSERT_TRUE(ValidateLayout(LayoutOfAllKinds()).ok())
      << MessageOf(ValidateLayout(LayoutOfAllKinds()));
  for (const Case& test : cases) {
    SCOPED_TRACE(test.message);
    KvLayout layout = LayoutOfAllKinds();
    test.change(layout);
    const absl::Status status = ValidateLayout(layout);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(MessageOf(status), HasSubstr(test.message));
    EXPECT_FALSE(DecodeLayout(EncodeLayout(layout)).ok());
  }
}

TEST(LayoutValidation, RefusesTopLevelFields) {
  ExpectRefused({
      {"model: must not be empty", [](KvLayout& l) { l.model.clear(); }},
      {"model: 513 bytes", [](KvLayout& l) { l.model.assign(513, 'a'); }},
      {"model: control character U+000A at byte 1", [](KvLayout& l) { l.model = "a\nb"; }},
      {"weights_revision: must not", [](KvLayout& l) { l.weights_revision.clear(); }},
      {"weights_revision: not UTF-8 at byte 1", [](KvLayout& l) { l.weights_revision = "a\xff"; }},
      {"adapter: control character U+0085", [](KvLayout& l) { l.adapter = "\xc2\x85"; }},
      {"layout_version: 0", [](KvLayout& l) { l.layout_version = 0; }},
      {"chunk_tokens: 15 is not in 16..512", [](KvLayout& l) { l.chunk_tokens = 15; }},
      {"chunk_tokens: 513 is not in 16..512", [](KvLayout& l) { l.chunk_tokens = 513; }},
      {"parallel_width: 0", [](KvLayout& l) { l.parallel_width = 0; }},
      {"parallel_width: 4097", [](KvLayout& l) { l.parallel_width = 4097; }},
      {"parallel_rank: 2 is not below", [](KvLayout& l) { l.parallel_rank = 2; }},
      {"layers: 0 layers", [](KvLayout& l) { l.layers.clear(); }},
      {"layers: 1025 layers", [](KvLayout& l) { l.layers.assign(1025, l.layers[0]); }},
  });
}

TEST(LayoutValidation, RefusesRope) {
  ExpectRefused({
      {"rope.pairing: 0", [](KvLayout& l) { l.rope.pairing = RopePairing{0}; }},
      {"rope.key_state: 3", [](KvLayout& l) { l.rope.key_state = KeyState{3}; }},
      {"rope.rotary_dim: 8 must be 0", [](KvLayout& l) { l.rope.pairing = RopePairing::kNone; }},
      {"rope.inv_freq: 4 entries, must be empty",
       [](KvLayout& l) {
         l.rope.pairing = RopePairing::kNone;
         l.rope.rotary_dim = 0;
       }},
      {"rope.attention_scale: 2 must be 1",
       [](KvLayout& l) {
         l.rope = {};
         l.rope.attention_scale = 2;
       }},
      {"rope.key_state: raw contradicts",
       [](KvLayout& l) {
         l.rope = {};
         l.rope.key_state = KeyState::kRaw;
       }},
      {"rope.rotary_dim: 0 is not", [](KvLayout& l) { l.rope.rotary_dim = 0; }},
      {"rope.rotary_dim: 7 is not", [](KvLayout& l) { l.rope.rotary_dim = 7; }},
      {"rope.inv_freq: 4 entries, rotary_dim 6 needs 3",
       [](KvLayout& l) { l.rope.rotary_dim = 6; }},
      {"rope.inv_freq[2]: nan", [](KvLayout& l) { l.rope.inv_freq[2] = kNan; }},
      {"rope.attention_scale: inf", [](KvLayout& l) { l.rope.attention_scale = kInf; }},
      {"rope.attention_scale: 0", [](KvLayout& l) { l.rope.attention_scale = 0; }},
      {"rope.rotary_dim: 18 is more than layers[0].key_dim 16",
       [](KvLayout& l) { l.rope = turnkeep::testing::SmallRope(18); }},
      {"rope.rotary_dim: 8 is more than layers[2].latent_rope_dim 4",
       [](KvLayout& l) { l.layers[kLatentLayer].latent_rope_dim = 4; }},
  });
}

TEST(LayoutValidation, RefusesLayerFields) {
  const auto at = [](size_t index, auto change) {
    return [=](KvLayout& l) { change(l.layers[index]); };
  };
  ExpectRefused({
      {"layers[0].kind: 0", at(kFullLayer, [](LayerSpec& s) { s.kind = LayerKind{0}; })},
      {"layers[0].dtype: 7", at(kFullLayer, [](LayerSpec& s) { s.dtype = DType{7}; })},
      {"layers[0].kv_heads: 0 must be given", at(kFullLayer, [](LayerSpec& s) { s.kv_heads = 0; })},
      {"layers[0].kv_heads: 4097 is more than the limit 4096",
       at(kFullLayer, [](LayerSpec& s) { s.kv_heads = 4097; })},
      {"layers[0].value_dim: 0", at(kFullLayer, [](LayerSpec& s) { s.value_dim = 0; })},
      {"layers[4].key_dim: 65537", at(kWindowLayer, [](LayerSpec& s) { s.key_dim = 65537; })},
      {"layers[0].latent_dim: 3 must be 0", at(kFullLayer, [](LayerSpec& s) { s.latent_dim = 3; })},
      {"layers[0].latent_rope_dim: 3", at(kFullLayer, [](LayerSpec& s) { s.latent_rope_dim = 3; })},
      {"layers[0].key_rank: 3", at(kFullLayer, [](LayerSpec& s) { s.key_rank = 3; })},
      {"layers[0].value_rank: 3", at(kFullLayer, [](LayerSpec& s) { s.value_rank = 3; })},
      {"layers[0].window_tokens: 3", at(kFullLayer, [](LayerSpec& s) { s.window_tokens = 3; })},
      {"layers[0].state_bytes: 3", at(kFullLayer, [](LayerSpec& s) { s.state_bytes = 3; })},
      {"layers[0].key_source_layer: 3",
       at(kFullLayer, [](LayerSpec& s) { s.key_source_layer = 3; })},
      {"layers[0].basis_hash: 01", at(kFullLayer, [](LayerSpec& s) { s.basis_hash.bytes[0] = 1; })},
      {"layers[1].key_dim: 16 must be 0",
       at(kValueOnlyLayer, [](LayerSpec& s) { s.key_dim = 16; })},
      {"layers[1].key_source_layer: 1 is not an earlier layer",
       at(kValueOnlyLayer, [](LayerSpec& s) { s.key_source_layer = 1; })},
      {"layers[2].kv_heads: 1 must be 0", at(kLatentLayer, [](LayerSpec& s) { s.kv_heads = 1; })},
      {"layers[2].latent_dim: 0", at(kLatentLayer, [](LayerSpec& s) { s.latent_dim = 0; })},
      {"layers[3].key_rank: 0", at(kLowRankLayer, [](LayerSpec& s) { s.key_rank = 0; })},
      {"layers[3].key_rank: 33 is more than key_dim 32",
       at(kLowRankLayer, [](LayerSpec& s) { s.key_rank = 33; })},
      {"layers[3].value_rank: 17 is more than value_dim 16",
       at(kLowRankLayer, [](LayerSpec& s) { s.value_rank = 17; })},
      {"layers[3].basis_hash: 00", at(kLowRankLayer, [](LayerSpec& s) { s.basis_hash = {}; })},
      {"layers[4].window_tokens: 0", at(kWindowLayer, [](LayerSpec& s) { s.window_tokens = 0; })},
      {"layers[5].state_bytes: 0", at(kStateLayer, [](LayerSpec& s) { s.state_bytes = 0; })},
      {"layers[5].state_bytes: 268435457",
       at(kStateLayer, [](LayerSpec& s) { s.state_bytes = kMaxStateBytes + 1; })},
      {"layers[5].kv_heads: 1", at(kStateLayer, [](LayerSpec& s) { s.kv_heads = 1; })},
  });
}

TEST(LayoutValidation, RefusesAKeySourceWithoutKeys) {
  ExpectRefused(
      {{"layers[6].key_source_layer: 5 is a layer without keys (state)",
        [](KvLayout& l) {
          l.layers.push_back(l.layers[kValueOnlyLayer]);
          l.layers[6].key_source_layer = 5;
        }},
       {"layers[6].key_source_layer: 1 is a layer without keys (value_only)", [](KvLayout& l) {
          l.layers.push_back(l.layers[kValueOnlyLayer]);
          l.layers[6].key_source_layer = 1;
        }}});
}

TEST(LayoutValidation, RefusesScales) {
  const auto at = [](size_t index, auto change) {
    return [=](KvLayout& l) { change(l.layers[index]); };
  };
  ExpectRefused({
      {"layers[0].scale_kind: 0",
       at(kFullLayer, [](LayerSpec& s) { s.scale_kind = ScaleKind{0}; })},
      {"layers[0].scale_kind: per_token_head contradicts dtype float16",
       at(kFullLayer, [](LayerSpec& s) { s.scale_kind = ScaleKind::kPerTokenHead; })},
      {"layers[4].scale_kind: none leaves int8",
       at(kWindowLayer, [](LayerSpec& s) { s.scale_kind = ScaleKind::kNone; })},
      {"layers[4].key_scale: 0 is not", at(kWindowLayer, [](LayerSpec& s) { s.key_scale = 0; })},
      {"layers[4].key_scale: nan", at(kWindowLayer, [](LayerSpec& s) { s.key_scale = kNan; })},
      {"layers[4].value_scale: inf", at(kWindowLayer, [](LayerSpec& s) { s.value_scale = kInf; })},
      {"layers[4].value_scale: -1", at(kWindowLayer, [](LayerSpec& s) { s.value_scale = -1; })},
      {"layers[4].key_scale: 0.1 must be 0",
       at(kWindowLayer, [](LayerSpec& s) { s.scale_kind = ScaleKind::kPerTokenHead; })},
      {"layers[0].key_scale: -0", at(kFullLayer, [](LayerSpec& s) { s.key_scale = -0.0f; })},
      {"layers[5].scale_kind: per_token_head must be none", at(kStateLayer,
                                                               [](LayerSpec& s) {
                                                                 s.dtype = DType::kInt8;
                                                                 s.scale_kind =
                                                                     ScaleKind::kPerTokenHead;
                                                               })},
  });
}

TEST(LayoutValidation, RefusesPagesAndChunksPastTheLimits) {
  ExpectRefused({
      {"layers[0]: a page of 512 tokens has",
       [](KvLayout& l) {
         l.chunk_tokens = 512;
         l.layers[0] = LayerSpec::Full(kMaxKvHeads, kMaxHeadDim, DType::kFloat32);
       }},
      {"layers: a chunk of 64 tokens has",
       [](KvLayout& l) { l.layers.assign(9, LayerSpec::Full(1024, 2048, DType::kFloat16)); }},
  });
}

TEST(LayoutValidation, AcceptsTheEdges) {
  KvLayout layout = LayoutOfAllKinds();
  layout.model = "mod\xc3\xa8le \xf0\x9f\x90\xa2 \"quoted\"";
  layout.chunk_tokens = kMaxChunkTokens;
  layout.layers[kLatentLayer].latent_rope_dim = 0;
  layout.layers[kLowRankLayer].key_rank = layout.layers[kLowRankLayer].key_dim;
  layout.layers[kStateLayer].state_bytes = kMaxStateBytes;
  EXPECT_TRUE(ValidateLayout(layout).ok()) << MessageOf(ValidateLayout(layout));
  KvLayout wide = SmallLayout();
  wide.layers.assign(kMaxLayers, LayerSpec::Full(1, 16, DType::kFp8E5M2));
  EXPECT_TRUE(ValidateLayout(wide).ok()) << MessageOf(ValidateLayout(wide));
  EXPECT_EQ(*DecodeLayout(EncodeLayout(wide)), wide);
}

}  // namespace
}  // namespace turnkeep
