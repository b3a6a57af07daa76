#include "llama/model.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {
namespace {

constexpr uint32_t kMaxDim = 8192;
constexpr uint32_t kMaxHidden = 65536;
constexpr uint32_t kMaxModelLayers = 256;
constexpr uint32_t kMaxVocab = 1u << 20;
constexpr uint32_t kMaxContext = 1u << 20;
constexpr uint64_t kMaxWeights = uint64_t{1} << 32;
// Bump when the generator below changes: it is part of a random model's revision.
constexpr int kGeneratorVersion = 1;

std::string Sha256Hex(const void* data, size_t bytes) {
  std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
  unsigned int length = 0;
  TK_CHECK(EVP_Digest(data, bytes, digest.data(), &length, EVP_sha256(), nullptr) == 1);
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

absl::Status CheckRange(const char* field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("model: {} = {}, allowed {} to {}", field, value, low, high);
}

// splitmix64's output function: a well-mixed 64-bit value for every counter.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Uniform values with standard deviation `deviation`; value i depends on (key, i) only.
void FillUniform(uint64_t key, double deviation, float* out, size_t count) {
  // 24-bit integers are exact in float32, so the only rounding is the one product.
  const float step = static_cast<float>(deviation * std::sqrt(3.0) / (1 << 23));
  for (size_t i = 0; i < count; ++i) {
    const int32_t centred = static_cast<int32_t>(Mix(key + i) >> 40) - (1 << 23);
    out[i] = static_cast<float>(centred) * step;
  }
}

void FillInParallel(uint64_t key, double deviation, float* out, size_t count) {
  const size_t parts =
      std::max<size_t>(1, std::min<size_t>(8, std::thread::hardware_concurrency()));
  const size_t part = (count + parts - 1) / parts;
  std::vector<std::thread> threads;
  for (size_t begin = 0; begin < count; begin += part) {
    threads.emplace_back(
        [=] { FillUniform(key + begin, deviation, out + begin, std::min(part, count - begin)); });
  }
  for (std::thread& thread : threads) thread.join();
}

absl::StatusOr<std::vector<char>> ReadFile(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return ErrnoStatus(error.value(), fmt::format("read model {}", path));
  std::vector<char> data(bytes);
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoStatus(errno, fmt::format("open model {}", path));
  const size_t got = std::fread(data.data(), 1, bytes, file);
  std::fclose(file);
  if (got != bytes) return Unavailable("read model {}: {} of {} bytes", path, got, bytes);
  return data;
}

absl::Status ParseKeys(std::string_view text, ModelConfig* config) {
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = item.find('=');
    const std::string_view key = item.substr(0, equals);
    uint32_t* field = key == "dim"        ? &config->dim
                      : key == "layers"   ? &config->layers
                      : key == "heads"    ? &config->heads
                      : key == "kv_heads" ? &config->kv_heads
                      : key == "hidden"   ? &config->hidden
                      : key == "vocab"    ? &config->vocab
                      : key == "context"  ? &config->context
                                          : nullptr;
    if (field == nullptr || equals == std::string_view::npos) {
      return InvalidArgument(
          "random model: \"{}\"; expected 15M, 42M, 110M or dim=…,layers=…,heads=…,kv_heads=…,"
          "hidden=…,vocab=…,context=…",
          item);
    }
    const std::string_view value = item.substr(equals + 1);
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), *field);
    if (error != std::errc() || end != value.data() + value.size()) {
      return InvalidArgument("random model: {} = \"{}\" is not a number", key, value);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateConfig(const ModelConfig& c) {
  TK_RETURN_IF_ERROR(CheckRange("dim", c.dim, 8, kMaxDim));
  TK_RETURN_IF_ERROR(CheckRange("hidden", c.hidden, 1, kMaxHidden));
  TK_RETURN_IF_ERROR(CheckRange("layers", c.layers, 1, kMaxModelLayers));
  TK_RETURN_IF_ERROR(CheckRange("heads", c.heads, 1, c.dim));
  TK_RETURN_IF_ERROR(CheckRange("kv_heads", c.kv_heads, 1, c.heads));
  TK_RETURN_IF_ERROR(CheckRange("vocab", c.vocab, 2, kMaxVocab));
  TK_RETURN_IF_ERROR(CheckRange("context", c.context, 2, kMaxContext));
  if (c.dim % c.heads != 0) {
    return InvalidArgument("model: dim = {} is not a multiple of heads = {}", c.dim, c.heads);
  }
  if (c.heads % c.kv_heads != 0) {
    return InvalidArgument("model: heads = {} is not a multiple of kv_heads = {}", c.heads,
                           c.kv_heads);
  }
  if (c.head_dim() % 8 != 0) {
    return InvalidArgument("model: head size {} is not a multiple of 8", c.head_dim());
  }
  return absl::OkStatus();
}

absl::StatusOr<RandomSpec> ParseRandomSpec(std::string_view text, uint64_t seed) {
  RandomSpec spec{.seed = seed};
  ModelConfig& c = spec.config;
  if (text == "15M") {
    c = {.dim = 288,
         .hidden = 768,
         .layers = 6,
         .heads = 6,
         .kv_heads = 6,
         .vocab = 32000,
         .context = 1024};
  } else if (text == "42M") {
    c = {.dim = 512,
         .hidden = 1376,
         .layers = 8,
         .heads = 8,
         .kv_heads = 8,
         .vocab = 32000,
         .context = 1024};
  } else if (text == "110M") {
    c = {.dim = 768,
         .hidden = 2048,
         .layers = 12,
         .heads = 12,
         .kv_heads = 12,
         .vocab = 32000,
         .context = 1024};
  } else {
    TK_RETURN_IF_ERROR(ParseKeys(text, &c));
    if (c.dim == 0) c.dim = 288;
    if (c.layers == 0) c.layers = 6;
    if (c.heads == 0) c.heads = std::max(1u, c.dim / 48);
    if (c.kv_heads == 0) c.kv_heads = c.heads;
    if (c.hidden == 0) c.hidden = (c.dim * 8 / 3 + 15) / 16 * 16;
    if (c.vocab == 0) c.vocab = 32000;
    if (c.context == 0) c.context = 1024;
  }
  TK_RETURN_IF_ERROR(ValidateConfig(c));
  return spec;
}

uint64_t Model::WeightCount(const ModelConfig& c, bool tied) {
  const uint64_t attention = 2ull * c.dim * c.dim + 2ull * c.dim * c.kv_dim();
  const uint64_t layer = 2ull * c.dim + attention + 3ull * c.dim * c.hidden;
  const uint64_t embedding = uint64_t{c.vocab} * c.dim;
  return embedding * (tied ? 1 : 2) + c.layers * layer + c.dim;
}

void Model::Assign(bool tied) {
  const ModelConfig& c = config_;
  layers_.resize(c.layers);
  const float* at = weights_.data();
  const auto take = [&at](uint64_t count) {
    const float* begin = at;
    at += count;
    return begin;
  };
  const auto each = [&](const float* Layer::*field, uint64_t count) {
    for (Layer& layer : layers_) layer.*field = take(count);
  };
  const uint64_t square = uint64_t{c.dim} * c.dim;
  const uint64_t kv = uint64_t{c.dim} * c.kv_dim();
  const uint64_t ffn = uint64_t{c.dim} * c.hidden;
  embedding_ = take(uint64_t{c.vocab} * c.dim);
  each(&Layer::attention_norm, c.dim);
  each(&Layer::wq, square);
  each(&Layer::wk, kv);
  each(&Layer::wv, kv);
  each(&Layer::wo, square);
  each(&Layer::ffn_norm, c.dim);
  each(&Layer::gate, ffn);
  each(&Layer::down, ffn);
  each(&Layer::up, ffn);
  final_norm_ = take(c.dim);
  output_ = tied ? embedding_ : take(uint64_t{c.vocab} * c.dim);
  TK_CHECK(at == weights_.data() + weights_.size());
}

absl::StatusOr<std::unique_ptr<Model>> Model::LoadLlama2c(const std::string& path) {
  TK_ASSIGN_OR_RETURN(const std::vector<char> file, ReadFile(path));
  std::array<int32_t, 7> head;
  if (file.size() < sizeof(head)) {
    return InvalidArgument("model {}: {} bytes are too few for a header", path, file.size());
  }
  std::memcpy(head.data(), file.data(), sizeof(head));
  for (size_t i = 0; i < head.size(); ++i) {
    if (i != 5 && head[i] <= 0) {
      return InvalidArgument("model {}: header field {} = {} is not positive", path, i, head[i]);
    }
  }
  const bool tied = head[5] > 0;
  const auto word = [&head](size_t i) { return static_cast<uint32_t>(std::abs(int64_t{head[i]})); };
  std::unique_ptr<Model> model(new Model);
  model->config_ = {.dim = word(0),
                    .hidden = word(1),
                    .layers = word(2),
                    .heads = word(3),
                    .kv_heads = word(4),
                    .vocab = word(5),
                    .context = word(6)};
  TK_RETURN_IF_ERROR(ValidateConfig(model->config_));
  const ModelConfig& c = model->config_;
  const uint64_t tables = uint64_t{c.context} * c.head_dim();  // cos and sin, not used
  const uint64_t used = WeightCount(c, tied);
  const uint64_t expected = sizeof(head) + 4 * (used + tables);
  if (file.size() != expected) {
    return InvalidArgument("model {}: {} bytes, the header asks for {}", path, file.size(),
                           expected);
  }
  model->weights_.resize(used);
  // The tables lie between the final norm and an untied output matrix.
  const uint64_t before = WeightCount(c, true);
  const char* data = file.data() + sizeof(head);
  std::memcpy(model->weights_.data(), data, 4 * before);
  std::memcpy(model->weights_.data() + before, data + 4 * (before + tables), 4 * (used - before));
  model->Assign(tied);
  model->name_ = std::filesystem::path(path).stem().string();
  model->revision_ = Sha256Hex(file.data(), file.size());
  return model;
}

absl::StatusOr<std::unique_ptr<Model>> Model::Random(const RandomSpec& spec) {
  const ModelConfig& c = spec.config;
  TK_RETURN_IF_ERROR(ValidateConfig(c));
  if (WeightCount(c, true) > kMaxWeights) {
    return ResourceExhausted("random model: {} weights, allowed {}", WeightCount(c, true),
                             kMaxWeights);
  }
  std::unique_ptr<Model> model(new Model);
  model->config_ = c;
  model->weights_.resize(WeightCount(c, true));
  model->Assign(true);

  uint64_t tensor = 0;
  const auto fill = [&](const float* target, uint64_t count, double deviation) {
    float* out = model->weights_.data() + (target - model->weights_.data());
    FillInParallel(Mix(Mix(spec.seed) + tensor++), deviation, out, count);
  };
  const auto ones = [&](const float* target) {
    float* out = model->weights_.data() + (target - model->weights_.data());
    std::fill(out, out + c.dim, 1.0f);
  };
  // Queries and keys are twice as large as usual, so that attention has peaks and a
  // wrong key shows in the logits.
  const double in_dim = 1.0 / std::sqrt(c.dim);
  fill(model->embedding_, uint64_t{c.vocab} * c.dim, 0.1);
  for (const Layer& layer : model->layers_) {
    ones(layer.attention_norm);
    ones(layer.ffn_norm);
    fill(layer.wq, uint64_t{c.dim} * c.dim, 2 * in_dim);
    fill(layer.wk, uint64_t{c.dim} * c.kv_dim(), 2 * in_dim);
    fill(layer.wv, uint64_t{c.dim} * c.kv_dim(), in_dim);
    fill(layer.wo, uint64_t{c.dim} * c.dim, in_dim);
    fill(layer.gate, uint64_t{c.dim} * c.hidden, in_dim);
    fill(layer.up, uint64_t{c.dim} * c.hidden, in_dim);
    fill(layer.down, uint64_t{c.dim} * c.hidden, 1.0 / std::sqrt(c.hidden));
  }
  ones(model->final_norm_);
  const std::string description = fmt::format(
      "random llama v{} dim={},hidden={},layers={},heads={},kv_heads={},vocab={},context={} "
      "seed={}",
      kGeneratorVersion, c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab, c.context,
      spec.seed);
  model->name_ = fmt::format("random-{}x{}", c.layers, c.dim);
  model->revision_ = Sha256Hex(description.data(), description.size());
  return model;
}

}  // namespace turnkeep::llama
