// What the replay has to know of a model on its machine: KV bytes a token, and how long
// prefill and decoding take.
//
// KV bytes follow from the published shapes (2 x layers x KV heads x head dim x bytes).
// Prefill: 2 FLOP a weight and token, and 4 x layers x query heads x head dim for every token
// of the context before it, at 61% of the GPUs' dense peak, the share at which LLaMA-65B on
// 4 x A100 takes the 360 ms for 2,048 tokens that CachedAttention reports (arXiv 2403.19708,
// section 2.4). A decode step reads weights and the batch's KV once at the memory bandwidth;
// a prefill runs apart from decoding, so that it reads the weights once, too.
//
// Thread-safe: constants.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <absl/status/statusor.h>

namespace turnkeep::replay {

struct Model {
  std::string name;
  uint32_t layers = 0;
  uint64_t kv_bytes_per_token = 0;
  double weight_bytes = 0;
  double prefill_tokens_per_s = 0;  // at the start of a context
  // The context at which attention costs as much as everything else; 0: attention is free.
  double half_speed_tokens = 0;
  bool prefill_floor = true;      // a prefill takes no less than reading the weights
  double memory_bytes_per_s = 0;  // of all its GPUs
  uint32_t window_tokens = 0;     // context length
  uint32_t gpus = 1;

  // Of the tokens at [from, to) of a context, behind those before. A token at position c takes
  // 1 + c / half_speed_tokens times as long as the first.
  double PrefillSeconds(double from_token, double to_token) const;
  // The least that PrefillSeconds is for a token or more.
  double PrefillFloorSeconds() const;
  // One decode iteration of `batch` requests with `context_tokens` of KV in all.
  double DecodeStepSeconds(uint32_t batch, double context_tokens) const;
};

std::span<const Model> ModelPresets();
// InvalidArgument lists the names there are.
absl::StatusOr<Model> FindModel(const std::string& name);

}  // namespace turnkeep::replay
