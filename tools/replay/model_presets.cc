#include "model_presets.h"

#include <algorithm>
#include <vector>

#include "core/prefill_time.h"
#include "core/status.h"

namespace turnkeep::replay {
namespace {

constexpr double kFlopShare = 0.607;
constexpr double kA100Flops = 312e12;
constexpr double kA100Bytes = 2.039e12;
constexpr double kH200Flops = 989e12;
constexpr double kH200Bytes = 4.8e12;

struct Shape {
  const char* name;
  double parameters;
  uint32_t layers, query_heads, kv_heads, head_dim, window_tokens, gpus;
  bool h200;
};

// CachedAttention runs the 13B on two of its four A100s and the others on all four.
constexpr Shape kShapes[] = {
    {"llama-13b", 13.0e9, 40, 40, 40, 128, 4096, 2, false},
    {"llama-65b", 65.2e9, 80, 64, 64, 128, 2048, 4, false},
    {"llama-70b", 69.0e9, 80, 64, 8, 128, 4096, 4, false},
    {"falcon-40b", 41.3e9, 60, 128, 8, 64, 4096, 4, false},
    {"llama-3-8b-h200", 8.0e9, 32, 32, 8, 128, 131072, 1, true},
    {"llama-3-70b-h200", 70.6e9, 80, 64, 8, 128, 131072, 4, true},
};

std::vector<Model> MakePresets() {
  std::vector<Model> models;
  for (const Shape& shape : kShapes) {
    Model model;
    model.name = shape.name;
    model.layers = shape.layers;
    model.kv_bytes_per_token = uint64_t{2} * shape.layers * shape.kv_heads * shape.head_dim * 2;
    model.weight_bytes = 2 * shape.parameters;
    model.gpus = shape.gpus;
    model.window_tokens = shape.window_tokens;
    model.prefill_tokens_per_s =
        kFlopShare * shape.gpus * (shape.h200 ? kH200Flops : kA100Flops) / (2 * shape.parameters);
    model.half_speed_tokens =
        2 * shape.parameters / (4.0 * shape.layers * shape.query_heads * shape.head_dim);
    model.memory_bytes_per_s = shape.gpus * (shape.h200 ? kH200Bytes : kA100Bytes);
    models.push_back(model);
  }
  return models;
}

}  // namespace

double Model::PrefillFloorSeconds() const {
  return prefill_floor ? weight_bytes / memory_bytes_per_s : 0;
}

double Model::PrefillSeconds(double from_token, double to_token) const {
  if (to_token <= from_token) return 0;
  return std::max(
      PrefillFloorSeconds(),
      turnkeep::PrefillSeconds(from_token, to_token, prefill_tokens_per_s, half_speed_tokens));
}

double Model::DecodeStepSeconds(uint32_t batch, double context_tokens) const {
  if (batch == 0) return 0;
  return (weight_bytes + context_tokens * static_cast<double>(kv_bytes_per_token)) /
         memory_bytes_per_s;
}

std::span<const Model> ModelPresets() {
  static const std::vector<Model> models = MakePresets();
  return models;
}

absl::StatusOr<Model> FindModel(const std::string& name) {
  std::string names;
  for (const Model& model : ModelPresets()) {
    if (model.name == name) return model;
    names += (names.empty() ? "" : ", ") + model.name;
  }
  return InvalidArgument("model \"{}\" does not exist; there are: {}", name, names);
}

}  // namespace turnkeep::replay
