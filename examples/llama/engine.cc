#include "llama/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/check.h"
#include "core/status.h"
#include "llama/device_pages.h"
#include "llama/kv_planes.h"

namespace turnkeep::llama {
namespace {

constexpr double kRopeTheta = 10000.0;

std::vector<Gemm::Shape> ShapesOf(const ModelConfig& c) {
  return {
      {c.dim, c.dim}, {c.kv_dim(), c.dim}, {c.hidden, c.dim}, {c.dim, c.hidden}, {c.vocab, c.dim}};
}

DevicePages* PagesOf(const Engine::Row& row) { return row.sequence->cache()->options().pages; }

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const Model* model, const Options& options) {
  if (options.threads < 1 || options.threads > kMaxThreads) {
    return InvalidArgument("engine: threads = {}, allowed 1 to {}", options.threads, kMaxThreads);
  }
  return std::unique_ptr<Engine>(new Engine(model, options));
}

Engine::Engine(const Model* model, const Options& options)
    : model_(model),
      bake_positions_(options.bake_positions),
      pool_(options.threads),
      gemm_(&pool_, ShapesOf(model->config())),
      rope_(model->config().head_dim(), kRopeTheta),
      raw_rotation_(
          Rotation::Apply(RopeOf({.head_dim = model->config().head_dim(), .keep_raw_keys = true}),
                          0, model->config().context)),
      attention_(&pool_) {
  const ModelConfig& c = model->config();
  for (uint32_t position = 0; position < c.context; ++position) {
    angles_.push_back(rope_.Angles(position));
  }
  normed_.resize(kMaxBatchRows * c.dim);
  query_.resize(kMaxBatchRows * c.dim);
  key_.resize(kMaxBatchRows * c.kv_dim());
  value_.resize(kMaxBatchRows * c.kv_dim());
  attended_.resize(kMaxBatchRows * c.dim);
  projected_.resize(kMaxBatchRows * c.dim);
  gate_.resize(kMaxBatchRows * c.hidden);
  up_.resize(kMaxBatchRows * c.hidden);
  scores_.assign(pool_.thread_count(), std::vector<float>(c.context));
}

absl::StatusOr<std::unique_ptr<PagedKvCache>> Engine::NewCache(const CacheOptions& options) const {
  const ModelConfig& c = model_->config();
  const uint32_t tokens = options.token_count == 0 ? c.context : options.token_count;
  const uint32_t per_page = std::max(1u, options.page_tokens);
  return PagedKvCache::Create({.layers = c.layers,
                               .kv_heads = c.kv_heads,
                               .head_dim = c.head_dim(),
                               .dtype = options.dtype,
                               .keep_raw_keys = options.keep_raw_keys,
                               .page_tokens = options.page_tokens,
                               .page_count = (tokens + per_page - 1) / per_page,
                               .pages = options.pages});
}

absl::Status Engine::Validate(std::span<const Row> rows) const {
  const ModelConfig& c = model_->config();
  for (const Row& row : rows) {
    if (row.token >= c.vocab) {
      return InvalidArgument("forward: token {} at position {}, the vocabulary has {}", row.token,
                             row.position, c.vocab);
    }
    if (row.position >= c.context) {
      return InvalidArgument("forward: position {}, the context has {}", row.position, c.context);
    }
    if (row.position >= row.sequence->capacity()) {
      return FailedPrecondition("forward: position {}, the sequence has room for {}", row.position,
                                row.sequence->capacity());
    }
  }
  return absl::OkStatus();
}

absl::Status Engine::Forward(std::span<const Row> rows, LayerObserver* observer,
                             std::span<const uint32_t> logit_rows, std::span<float> logits) {
  const ModelConfig& c = model_->config();
  TK_RETURN_IF_ERROR(Validate(rows));
  TK_CHECK(logits.size() == logit_rows.size() * c.vocab);
  DevicePages* const pages = rows.empty() ? nullptr : PagesOf(rows[0]);
  if (pages != nullptr) TK_RETURN_IF_ERROR(BeginDevicePass(rows, pages));
  std::vector<float> x(rows.size() * c.dim);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(&x[i * c.dim], model_->embedding() + size_t{rows[i].token} * c.dim,
                c.dim * sizeof(float));
  }
  for (uint32_t layer = 0; layer < c.layers; ++layer) {
    if (observer != nullptr) TK_RETURN_IF_ERROR(observer->BeforeLayer(layer));
    for (size_t begin = 0; begin < rows.size(); begin += kMaxBatchRows) {
      const size_t count = std::min(kMaxBatchRows, rows.size() - begin);
      TK_RETURN_IF_ERROR(RunLayer(layer, rows.subspan(begin, count), &x[begin * c.dim]));
    }
    if (observer != nullptr) observer->AfterLayer(layer);
  }
  std::vector<float> last(logit_rows.size() * c.dim);
  for (size_t i = 0; i < logit_rows.size(); ++i) {
    TK_CHECK(logit_rows[i] < rows.size());
    RmsNorm(&x[size_t{logit_rows[i]} * c.dim], model_->final_norm(), &last[i * c.dim], c.dim);
  }
  if (!logit_rows.empty()) {
    gemm_.Multiply(last.data(), model_->output(), logits.data(), logit_rows.size(),
                   {c.vocab, c.dim});
  }
  return absl::OkStatus();
}

absl::Status Engine::Prefill(Sequence* sequence, std::span<const uint32_t> tokens, uint64_t first,
                             LayerObserver* observer, std::span<float> logits) {
  if (tokens.empty()) return InvalidArgument("prefill: no tokens");
  if (first + tokens.size() > model_->config().context) {
    return InvalidArgument("prefill: {} tokens after {}, the context has {}", tokens.size(), first,
                           model_->config().context);
  }
  TK_RETURN_IF_ERROR(sequence->Reserve(first + tokens.size()));
  std::vector<Row> rows(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    rows[i] = {sequence, tokens[i], static_cast<uint32_t>(first + i)};
  }
  const uint32_t last = static_cast<uint32_t>(tokens.size() - 1);
  return Forward(rows, observer, {&last, 1}, logits);
}

absl::Status Engine::BeginDevicePass(std::span<const Row> rows, DevicePages* pages) const {
  const Sequence& sequence = *rows[0].sequence;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].sequence != &sequence || rows[i].position != rows[0].position + i)
      return InvalidArgument("forward: on a device, rows are consecutive tokens of one sequence");
  }
  const KvLayout layout = LayoutOf(*this, sequence.cache()->options(), kDefaultChunkTokens);
  return pages->BeginPass(MoverOptionsOf(*this, layout, sequence), ShapeOf(*sequence.cache()),
                          sequence);
}

// All rows' KV is in the cache before any row attends, and attention reads it back as it was
// rounded for the cache.
absl::Status Engine::RunLayer(uint32_t layer, std::span<const Row> rows, float* x) {
  const ModelConfig& c = model_->config();
  Project(layer, rows.size(), x);
  if (DevicePages* const pages = PagesOf(rows[0]); pages != nullptr) {
    TK_RETURN_IF_ERROR(AttendOnDevice(layer, rows, pages));
  } else {
    for (size_t i = 0; i < rows.size(); ++i)
      StoreKv(layer, rows[i], &key_[i * c.kv_dim()], &value_[i * c.kv_dim()], &query_[i * c.dim]);
    if (plan_ != nullptr) {
      RunPlan(layer, *rows[0].sequence->cache());
    } else {
      RunAttention(layer, rows);
    }
  }
  gemm_.Multiply(attended_.data(), model_->layer(layer).wo, projected_.data(), rows.size(),
                 {c.dim, c.dim});
  for (size_t i = 0; i < rows.size() * c.dim; ++i) x[i] += projected_[i];
  RunFeedForward(layer, rows.size(), x);
  return absl::OkStatus();
}

// Queries, keys and values before RoPE into query_, key_ and value_.
void Engine::Project(uint32_t layer, size_t count, const float* x) {
  const ModelConfig& c = model_->config();
  const Model::Layer& weights = model_->layer(layer);
  for (size_t i = 0; i < count; ++i) {
    RmsNorm(x + i * c.dim, weights.attention_norm, &normed_[i * c.dim], c.dim);
  }
  gemm_.Multiply(normed_.data(), weights.wq, query_.data(), count, {c.dim, c.dim});
  gemm_.Multiply(normed_.data(), weights.wk, key_.data(), count, {c.kv_dim(), c.dim});
  gemm_.Multiply(normed_.data(), weights.wv, value_.data(), count, {c.kv_dim(), c.dim});
}

absl::Status Engine::AttendOnDevice(uint32_t layer, std::span<const Row> rows, DevicePages* pages) {
  const ModelConfig& c = model_->config();
  const PagedKvCache::Options& cache = rows[0].sequence->cache()->options();
  TK_RETURN_IF_ERROR(pages->BeginRows(rows[0].position, rows.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::vector<float>& angles = angles_[rows[i].position];
    float* const query = &query_[i * c.dim];
    float* const key = &key_[i * c.kv_dim()];
    Rope::Rotate(angles, query, c.heads, c.head_dim());
    if (!cache.keep_raw_keys) Rope::Rotate(angles, key, c.kv_heads, c.head_dim());
    StoreRow(query, cache.dtype, pages->QueryRow(i), c.dim);
    StoreRow(key, cache.dtype, pages->KeyRow(i), c.kv_dim());
    StoreRow(&value_[i * c.kv_dim()], cache.dtype, pages->ValueRow(i), c.kv_dim());
  }
  return pages->StoreAndAttend(layer, attended_.data());
}

// With raw keys the rotated ones are made from the raw ones as stored, so that rotating
// again after a restore gives the same bits.
void Engine::StoreKv(uint32_t layer, const Row& row, float* key, const float* value, float* query) {
  const ModelConfig& c = model_->config();
  const PagedKvCache::Options& cache = row.sequence->cache()->options();
  const std::vector<float>& angles = angles_[row.position];
  Rope::Rotate(angles, query, c.heads, c.head_dim());
  std::byte* const rotated = row.sequence->At(Plane::kKeys, layer, row.position);
  if (cache.keep_raw_keys) {
    std::byte* const raw = row.sequence->At(Plane::kRawKeys, layer, row.position);
    StoreRow(key, cache.dtype, raw, c.kv_dim());
    RotateRaw(cache, row.position, raw, rotated);
  } else {
    Rope::Rotate(angles, key, c.kv_heads, c.head_dim());
    StoreRow(key, cache.dtype, rotated, c.kv_dim());
  }
  StoreRow(value, cache.dtype, row.sequence->At(Plane::kValues, layer, row.position), c.kv_dim());
}

void Engine::RunAttention(uint32_t layer, std::span<const Row> rows) {
  const ModelConfig& c = model_->config();
  const size_t group = c.heads / c.kv_heads;
  // Heads outside: the rows of one head read the same part of the cache one after another.
  pool_.ParallelFor(rows.size() * c.kv_heads, [&](size_t index, uint32_t worker) {
    const size_t head = index / rows.size();
    const size_t i = index % rows.size();
    const Row& row = rows[i];
    PagedKvCache* cache = row.sequence->cache();
    const uint32_t per_page = cache->options().page_tokens;
    const size_t head_bytes = c.head_dim() * DTypeBytes(cache->options().dtype);
    const size_t pages = row.position / per_page + 1;
    std::vector<const std::byte*> keys(pages), values(pages);
    for (size_t p = 0; p < pages; ++p) {
      const uint32_t page = row.sequence->table().pages[p];
      keys[p] = cache->Page(Plane::kKeys, layer, page) + head * head_bytes;
      values[p] = cache->Page(Plane::kValues, layer, page) + head * head_bytes;
    }
    const size_t offset = i * c.dim + head * group * c.head_dim();
    Attend({.query = &query_[offset],
            .out = &attended_[offset],
            .group = group,
            .head_dim = c.head_dim(),
            .tokens = row.position + size_t{1},
            .dtype = cache->options().dtype,
            .key_pages = keys,
            .value_pages = values,
            .page_tokens = per_page,
            .row_bytes = cache->row_bytes(),
            .scores = scores_[worker]});
  });
}

AttentionShape Engine::ShapeOf(const PagedKvCache& cache) const {
  const ModelConfig& c = model_->config();
  return {.query_heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim(),
          .page_tokens = cache.options().page_tokens,
          .dtype = cache.options().dtype,
          .scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim()))};
}

absl::Status Engine::Decode(std::span<const Row> rows, const AttentionPlan& plan,
                            std::span<float> logits) {
  if (rows.empty() || rows.size() > kMaxBatchRows)
    return InvalidArgument("decode: {} rows, allowed 1 to {}", rows.size(), kMaxBatchRows);
  for (const Row& row : rows) {
    if (row.sequence->cache() != rows[0].sequence->cache())
      return InvalidArgument("decode: rows of several caches");
  }
  const PagedKvCache& cache = *rows[0].sequence->cache();
  if (cache.options().pages != nullptr)
    return InvalidArgument("decode: the cache's pages are a device's, allowed host memory");
  if (cache.options().dtype != DType::kFloat32)
    return InvalidArgument("decode: a cache of {}, allowed float32",
                           std::string(NameOf(cache.options().dtype)));
  TK_RETURN_IF_ERROR(ValidateAttentionPlan(plan, ShapeOf(cache), cache.options().page_count));
  if (plan.row_count != rows.size())
    return InvalidArgument("decode: a plan of {} rows for {}", plan.row_count, rows.size());
  std::vector<uint32_t> all(rows.size());
  std::iota(all.begin(), all.end(), 0);
  plan_ = &plan;
  const absl::Status status = Forward(rows, nullptr, all, logits);
  plan_ = nullptr;
  return status;
}

// Planes are [pages, page_tokens, kv_heads, head_dim].
void Engine::RunPlan(uint32_t layer, const PagedKvCache& cache) {
  const ModelConfig& c = model_->config();
  auto& pages = const_cast<PagedKvCache&>(cache);
  lse_.resize(kMaxBatchRows * c.heads);
  attention_.Run(ShapeOf(cache),
                 {.keys = pages.Page(Plane::kKeys, layer, 0),
                  .values = pages.Page(Plane::kValues, layer, 0),
                  .page_stride = uint64_t{cache.options().page_tokens} * c.kv_dim(),
                  .head_stride = c.head_dim(),
                  .token_stride = c.kv_dim()},
                 *plan_,
                 {.queries = reinterpret_cast<const std::byte*>(query_.data()),
                  .output = attended_.data(),
                  .lse = lse_.data()});
}

void Engine::RunFeedForward(uint32_t layer, size_t count, float* x) {
  const ModelConfig& c = model_->config();
  const Model::Layer& weights = model_->layer(layer);
  for (size_t i = 0; i < count; ++i) {
    RmsNorm(x + i * c.dim, weights.ffn_norm, &normed_[i * c.dim], c.dim);
  }
  gemm_.Multiply(normed_.data(), weights.gate, gate_.data(), count, {c.hidden, c.dim});
  gemm_.Multiply(normed_.data(), weights.up, up_.data(), count, {c.hidden, c.dim});
  pool_.ParallelFor(count, [&](size_t i, uint32_t) {
    SwiGlu(&gate_[i * c.hidden], &up_[i * c.hidden], c.hidden);
  });
  gemm_.Multiply(gate_.data(), weights.down, projected_.data(), count, {c.dim, c.hidden});
  for (size_t i = 0; i < count * c.dim; ++i) x[i] += projected_[i];
}

RopeSpec Engine::RopeOf(const PagedKvCache::Options& cache) const {
  return {.pairing = RopePairing::kAdjacent,
          .rotary_dim = cache.head_dim,
          .inv_freq = rope_.inv_freq(),
          .key_state = cache.keep_raw_keys ? KeyState::kRaw : KeyState::kRotated};
}

absl::Status Engine::Truncate(Sequence* sequence, uint64_t token_count, uint64_t drop_begin,
                              uint64_t drop_end) const {
  TK_CHECK(drop_begin <= drop_end && drop_end <= token_count);
  const BlockTable& table = sequence->table();
  const PagedKvCache::Options& cache = table.cache->options();
  if (cache.pages != nullptr) {
    const KvLayout layout = LayoutOf(*this, cache, kDefaultChunkTokens);
    TK_RETURN_IF_ERROR(cache.pages->Truncate(MoverOptionsOf(*this, layout, *sequence), *sequence,
                                             token_count, drop_begin, drop_end));
    sequence->Shrink(token_count - (drop_end - drop_begin));
    return absl::OkStatus();
  }
  const int64_t shift = static_cast<int64_t>(drop_begin) - static_cast<int64_t>(drop_end);
  const Rotation rotation = bake_positions_ ? Rotation() : Rotation::Shift(RopeOf(cache), shift);
  for (uint32_t layer = 0; layer < model_->config().layers; ++layer) {
    for (uint64_t from = drop_end; from < token_count; ++from) {
      const uint64_t to = drop_begin + (from - drop_end);
      std::byte* const key = table.At(Plane::kKeys, layer, to);
      if (cache.keep_raw_keys) {
        std::byte* const raw = table.At(Plane::kRawKeys, layer, to);
        std::memmove(raw, table.At(Plane::kRawKeys, layer, from), table.cache->row_bytes());
        RotateRaw(cache, to, raw, key);
      } else {
        rotation.Rotate(cache.dtype, cache.kv_heads, cache.head_dim, 0, 1,
                        table.At(Plane::kKeys, layer, from), key);
      }
      std::memmove(table.At(Plane::kValues, layer, to), table.At(Plane::kValues, layer, from),
                   table.cache->row_bytes());
    }
  }
  sequence->Shrink(token_count - (drop_end - drop_begin));
  return absl::OkStatus();
}

void Engine::RotateRaw(const PagedKvCache::Options& cache, uint64_t token, const std::byte* raw,
                       std::byte* key) const {
  raw_rotation_.Rotate(cache.dtype, cache.kv_heads, cache.head_dim, static_cast<uint32_t>(token), 1,
                       raw, key);
}

uint32_t Greedy(std::span<const float> logits) {
  return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace turnkeep::llama
