// The weights of a Llama-architecture model: a llama2.c checkpoint, or a seeded
// random model of a given shape.
//
// Matrices are row-major [out, in] in float32. RoPE rotates adjacent pairs with theta
// 10000; norms are RMSNorm with eps 1e-5; the feed-forward network is SwiGLU.
//
// Thread-safe: constant after construction.
//
//   TK_ASSIGN_OR_RETURN(auto model, Model::LoadLlama2c("stories260K.bin"));
//   TK_ASSIGN_OR_RETURN(auto spec, ParseRandomSpec("42M", /*seed=*/1));
//   TK_ASSIGN_OR_RETURN(auto model, Model::Random(spec));
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace turnkeep::llama {

struct ModelConfig {
  uint32_t dim = 0;
  uint32_t hidden = 0;
  uint32_t layers = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t vocab = 0;
  uint32_t context = 0;

  uint32_t head_dim() const { return dim / heads; }
  uint32_t kv_dim() const { return head_dim() * kv_heads; }
};

// Head size a multiple of 8, heads a multiple of kv_heads, everything within the
// bounds of model.cc. InvalidArgument names the field and the value.
absl::Status ValidateConfig(const ModelConfig& config);

struct RandomSpec {
  ModelConfig config;
  uint64_t seed = 1;
};

// "15M", "42M", "110M" (shapes of the llama2.c tinyllamas, context 1024), or
// "dim=…,layers=…,heads=…,kv_heads=…,hidden=…,vocab=…,context=…"; what an explicit shape
// leaves out is derived. InvalidArgument names the key and the value.
absl::StatusOr<RandomSpec> ParseRandomSpec(std::string_view text, uint64_t seed);

class Model {
 public:
  struct Layer {
    const float* attention_norm = nullptr;  // [dim]
    const float* wq = nullptr;              // [dim, dim]
    const float* wk = nullptr;              // [kv_dim, dim]
    const float* wv = nullptr;              // [kv_dim, dim]
    const float* wo = nullptr;              // [dim, dim]
    const float* ffn_norm = nullptr;        // [dim]
    const float* gate = nullptr;            // w1 [hidden, dim]
    const float* down = nullptr;            // w2 [dim, hidden]
    const float* up = nullptr;              // w3 [hidden, dim]
  };

  // NotFound or the errno's code if the file cannot be read; InvalidArgument if it is
  // not a llama2.c checkpoint (version 0: seven int32, then float32 arrays).
  static absl::StatusOr<std::unique_ptr<Model>> LoadLlama2c(const std::string& path);
  // Weights from a counter-based generator: equal on every machine for one spec.
  static absl::StatusOr<std::unique_ptr<Model>> Random(const RandomSpec& spec);

  const ModelConfig& config() const { return config_; }
  const std::string& name() const { return name_; }
  // SHA-256 of the file, or of the random model's description, in hex.
  const std::string& revision() const { return revision_; }

  const float* embedding() const { return embedding_; }  // [vocab, dim]
  const Layer& layer(uint32_t index) const { return layers_[index]; }
  const float* final_norm() const { return final_norm_; }  // [dim]
  const float* output() const { return output_; }          // [vocab, dim]

 private:
  Model() = default;
  static uint64_t WeightCount(const ModelConfig& config, bool tied);
  // Points the fields into weights_, which are in the file's order.
  void Assign(bool tied);

  ModelConfig config_;
  std::string name_;
  std::string revision_;
  std::vector<float> weights_;
  std::vector<Layer> layers_;
  const float* embedding_ = nullptr;
  const float* final_norm_ = nullptr;
  const float* output_ = nullptr;
};

}  // namespace turnkeep::llama
