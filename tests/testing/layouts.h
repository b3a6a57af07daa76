// Small valid layouts for tests.
#pragma once

#include <cmath>

#include "core/layout.h"

namespace turnkeep::testing {

inline RopeSpec SmallRope(uint32_t rotary_dim = 8) {
  RopeSpec rope;
  rope.pairing = RopePairing::kHalves;
  rope.rotary_dim = rotary_dim;
  for (uint32_t i = 0; i < rotary_dim / 2; ++i) {
    rope.inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / rotary_dim));
  }
  return rope;
}

// `layer_count` full layers of 2 heads of 16 dims, float16: 128 bytes a token and layer.
inline KvLayout SmallLayout(uint32_t layer_count = 4, uint32_t chunk_tokens = 64) {
  KvLayout layout;
  layout.model = "small";
  layout.weights_revision = "1";
  layout.chunk_tokens = chunk_tokens;
  layout.rope = SmallRope();
  layout.layers.assign(layer_count, LayerSpec::Full(2, 16, DType::kFloat16));
  return layout;
}

// One layer of each kind.
inline KvLayout LayoutOfAllKinds() {
  KvLayout layout = SmallLayout(1);
  layout.adapter = "adapter-3";
  layout.parallel_rank = 1;
  layout.parallel_width = 2;
  layout.layers.push_back({.kind = LayerKind::kValueOnly,
                           .dtype = DType::kBFloat16,
                           .kv_heads = 2,
                           .value_dim = 16,
                           .key_source_layer = 0});
  layout.layers.push_back({.kind = LayerKind::kLatent,
                           .dtype = DType::kFp8E4M3,
                           .latent_dim = 64,
                           .latent_rope_dim = 8,
                           .scale_kind = ScaleKind::kPerTokenHead});
  LayerSpec low_rank{.kind = LayerKind::kLowRank,
                     .dtype = DType::kFloat32,
                     .kv_heads = 2,
                     .key_dim = 32,
                     .value_dim = 16,
                     .key_rank = 12,
                     .value_rank = 10};
  low_rank.basis_hash.bytes[0] = 7;
  layout.layers.push_back(low_rank);
  layout.layers.push_back({.kind = LayerKind::kWindow,
                           .dtype = DType::kInt8,
                           .kv_heads = 4,
                           .key_dim = 64,
                           .value_dim = 32,
                           .window_tokens = 128,
                           .scale_kind = ScaleKind::kPerTensor,
                           .key_scale = 0.1f,
                           .value_scale = 0.003f});
  layout.layers.push_back(
      {.kind = LayerKind::kState, .dtype = DType::kFloat32, .state_bytes = 5000});
  return layout;
}

}  // namespace turnkeep::testing
