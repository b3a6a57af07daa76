#include "testing/standard_layouts.h"

#include <cmath>
#include <functional>
#include <utility>

namespace turnkeep::testing {
namespace {

KvLayout Named(const std::string& model, uint32_t chunk_tokens) {
  KvLayout layout;
  layout.model = model;
  layout.weights_revision = "r1";
  layout.chunk_tokens = chunk_tokens;
  return layout;
}

RopeSpec Rope(uint32_t rotary_dim, KeyState key_state) {
  RopeSpec rope{.pairing = RopePairing::kHalves, .rotary_dim = rotary_dim, .key_state = key_state};
  for (uint32_t i = 0; i < rotary_dim / 2; ++i) {
    rope.inv_freq.push_back(
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(rotary_dim)));
  }
  return rope;
}

Fingerprint Basis(uint8_t seed) {
  Fingerprint basis;
  for (size_t i = 0; i < basis.bytes.size(); ++i) basis.bytes[i] = static_cast<uint8_t>(seed + i);
  return basis;
}

KvLayout QuantisedLayout() {
  KvLayout layout = Named("quantised", 32);
  LayerSpec int8 = LayerSpec::Full(3, 20, DType::kInt8);
  int8.scale_kind = ScaleKind::kPerTokenHead;
  LayerSpec latent{.kind = LayerKind::kLatent,
                   .dtype = DType::kFp8E4M3,
                   .latent_dim = 96,
                   .latent_rope_dim = 8,
                   .scale_kind = ScaleKind::kPerTokenHead};
  LayerSpec fp8 = LayerSpec::Full(2, 24, DType::kFp8E5M2);
  fp8.scale_kind = ScaleKind::kPerTensor;
  fp8.key_scale = 0.5f;
  fp8.value_scale = 0.25f;
  layout.layers = {int8, latent, fp8};
  return layout;
}

// Pages of a block and a little, and of just under a block, in one chunk.
KvLayout RaggedLayout() {
  KvLayout layout = Named("ragged", 100);
  layout.layers = {LayerSpec::Full(1, 11, DType::kFloat16), LayerSpec::Full(5, 13, DType::kFloat32),
                   LayerSpec::Full(1, 10, DType::kFloat16)};
  return layout;
}

}  // namespace

KvLayout TinyLayout(const std::string& model) {
  KvLayout layout = Named(model, 16);
  layout.layers.assign(2, LayerSpec::Full(1, 8, DType::kFloat16));
  return layout;
}

KvLayout BlockLayout(const std::string& model) {
  KvLayout layout = Named(model, 64);
  layout.layers.assign(4, LayerSpec::Full(2, 32, DType::kBFloat16));
  return layout;
}

KvLayout EveryKindLayout() {
  KvLayout layout = Named("every-kind", 32);
  layout.adapter = "lora-7";
  layout.parallel_width = 2;
  layout.rope = Rope(16, KeyState::kRotated);
  LayerSpec scaled = LayerSpec::Full(2, 16, DType::kFp8E4M3);
  scaled.scale_kind = ScaleKind::kPerTensor;
  scaled.key_scale = 1.5f;
  scaled.value_scale = 2.5f;
  layout.layers = {
      LayerSpec::Full(2, 16, DType::kFloat16),
      {.kind = LayerKind::kWindow,
       .kv_heads = 2,
       .key_dim = 24,
       .value_dim = 16,
       .window_tokens = 128},
      {.kind = LayerKind::kValueOnly, .kv_heads = 2, .value_dim = 16, .key_source_layer = 1},
      {.kind = LayerKind::kLatent,
       .dtype = DType::kBFloat16,
       .latent_dim = 64,
       .latent_rope_dim = 16},
      {.kind = LayerKind::kLowRank,
       .kv_heads = 4,
       .key_dim = 32,
       .value_dim = 32,
       .key_rank = 6,
       .value_rank = 10,
       .basis_hash = Basis(1)},
      {.kind = LayerKind::kState, .dtype = DType::kFloat32, .state_bytes = 5000},
      scaled};
  return layout;
}

std::vector<LayoutCase> StandardLayouts() {
  KvLayout deep = Named("deep", 16);
  deep.layers.assign(300, LayerSpec::Full(1, 4, DType::kFloat16));
  KvLayout wide_chunk = Named("wide-chunk", 512);
  wide_chunk.layers.assign(2, LayerSpec::Full(1, 8, DType::kFloat16));
  return {{"Tiny", TinyLayout()},           {"Block", BlockLayout()},
          {"EveryKind", EveryKindLayout()}, {"Quantised", QuantisedLayout()},
          {"Ragged", RaggedLayout()},       {"Deep", deep},
          {"WideChunk", wide_chunk},        {"Hashed", TinyLayout("hashed"), true}};
}

std::vector<FieldChange> OneFieldChanges(const KvLayout& base) {
  std::vector<FieldChange> changes;
  const auto add = [&](const std::string& field, const std::function<void(KvLayout&)>& change) {
    KvLayout layout = base;
    change(layout);
    changes.push_back({field, std::move(layout)});
  };
  add("layout_version", [](KvLayout& l) { ++l.layout_version; });
  add("model", [](KvLayout& l) { l.model += "x"; });
  add("weights_revision", [](KvLayout& l) { l.weights_revision += "x"; });
  add("adapter", [](KvLayout& l) { l.adapter += "x"; });
  add("chunk_tokens", [](KvLayout& l) { l.chunk_tokens += 16; });
  add("parallel_rank", [](KvLayout& l) { ++l.parallel_rank; });
  add("parallel_width", [](KvLayout& l) { ++l.parallel_width; });
  add("rope.pairing", [](KvLayout& l) { l.rope.pairing = RopePairing::kAdjacent; });
  add("rope.rotary_dim", [](KvLayout& l) {
    l.rope.rotary_dim -= 2;
    l.rope.inv_freq.pop_back();  // its length follows
  });
  add("rope.inv_freq", [](KvLayout& l) { l.rope.inv_freq[1] *= 0.5f; });
  add("rope.attention_scale", [](KvLayout& l) { l.rope.attention_scale = 1.25f; });
  add("rope.key_state", [](KvLayout& l) { l.rope.key_state = KeyState::kRaw; });
  for (size_t i = 0; i < base.layers.size(); ++i) {
    const auto layer = [&](const char* field, auto change) {
      add("layers[" + std::to_string(i) + "]." + field, [&](KvLayout& l) { change(l.layers[i]); });
    };
    const LayerSpec& spec = base.layers[i];
    if (spec.dtype == DType::kFloat16) {
      layer("dtype", [](LayerSpec& s) { s.dtype = DType::kBFloat16; });
    }
    if (spec.kind == LayerKind::kFull) {
      layer("kind", [](LayerSpec& s) {
        s.kind = LayerKind::kWindow;
        s.window_tokens = 64;  // required by the kind
      });
    }
    if (spec.kv_heads != 0) layer("kv_heads", [](LayerSpec& s) { ++s.kv_heads; });
    if (spec.key_dim != 0) layer("key_dim", [](LayerSpec& s) { ++s.key_dim; });
    if (spec.value_dim != 0) layer("value_dim", [](LayerSpec& s) { ++s.value_dim; });
    if (spec.kind == LayerKind::kValueOnly) {
      layer("key_source_layer", [](LayerSpec& s) { --s.key_source_layer; });
    }
    if (spec.latent_dim != 0) layer("latent_dim", [](LayerSpec& s) { ++s.latent_dim; });
    if (spec.latent_rope_dim != 0) {
      layer("latent_rope_dim", [](LayerSpec& s) { ++s.latent_rope_dim; });
    }
    if (spec.key_rank != 0) layer("key_rank", [](LayerSpec& s) { ++s.key_rank; });
    if (spec.value_rank != 0) layer("value_rank", [](LayerSpec& s) { ++s.value_rank; });
    if (!spec.basis_hash.IsZero()) {
      layer("basis_hash", [](LayerSpec& s) { s.basis_hash.bytes[31] ^= 1; });
    }
    if (spec.window_tokens != 0) layer("window_tokens", [](LayerSpec& s) { ++s.window_tokens; });
    if (spec.state_bytes != 0) layer("state_bytes", [](LayerSpec& s) { ++s.state_bytes; });
    if (spec.scale_kind == ScaleKind::kPerTensor) {
      layer("scale_kind", [](LayerSpec& s) {
        s.scale_kind = ScaleKind::kPerTokenHead;
        s.key_scale = s.value_scale = 0;  // refused with this kind
      });
      layer("key_scale", [](LayerSpec& s) { s.key_scale *= 2; });
      layer("value_scale", [](LayerSpec& s) { s.value_scale *= 2; });
    }
  }
  return changes;
}

}  // namespace turnkeep::testing
