#include "llama/layer_loader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {

LayerLoader::LayerLoader(const Engine* engine, BlockTable table,
                         std::unique_ptr<RestoreTicket> ticket, uint64_t max_tokens)
    : engine_(engine),
      table_(std::move(table)),
      ticket_(std::move(ticket)),
      tokens_(std::min(ticket_->token_count(), max_tokens)) {
  TK_CHECK(tokens_ <= table_.capacity());
  thread_ = std::thread([this] { Run(); });
}

LayerLoader::~LayerLoader() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

uint64_t LayerLoader::Wait(uint32_t layer) {
  absl::MutexLock lock(&mutex_);
  const auto loaded = [this, layer]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return layers_ > layer; };
  mutex_.Await(absl::Condition(&loaded));
  return tokens_;
}

uint64_t LayerLoader::tokens() const {
  absl::MutexLock lock(&mutex_);
  return tokens_;
}

uint64_t LayerLoader::TokensFrom(Tier tier, uint64_t below) const {
  uint64_t tokens = 0;
  for (const RestoredSpan& span : ticket_->spans()) {
    if (span.tier != tier || span.token_begin >= below) continue;
    tokens += std::min<uint64_t>(span.token_count, below - span.token_begin);
  }
  return tokens;
}

std::string LayerLoader::trouble() const {
  absl::MutexLock lock(&mutex_);
  return trouble_;
}

void LayerLoader::Report(const std::string& trouble) {
  absl::MutexLock lock(&mutex_);
  if (trouble_.empty()) trouble_ = trouble;
}

void LayerLoader::Run() {
  const uint32_t layers = engine_->model().config().layers;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    uint64_t tokens;
    {
      absl::MutexLock lock(&mutex_);
      if (stop_) return;
      tokens = tokens_;
    }
    if (tokens > 0) tokens = LoadLayer(layer, tokens);
    absl::MutexLock lock(&mutex_);
    tokens_ = tokens;
    layers_ = layer + 1;
  }
}

uint64_t LayerLoader::LoadLayer(uint32_t layer, uint64_t tokens) {
  const absl::StatusOr<uint64_t> arrived = ticket_->WaitLayer(layer);
  if (!arrived.ok()) {
    Report(fmt::format("layer {}: {}", layer, MessageOf(arrived.status())));
    return 0;  // no token has this layer
  }
  if (*arrived < tokens) {
    Report(fmt::format("layer {}: {} of {} tokens; {}", layer, *arrived, tokens,
                       ticket_->miss_reason()));
    tokens = *arrived;
  }
  const std::span<const RestoredSpan> spans = ticket_->spans();
  for (size_t i = 0; i < spans.size() && spans[i].token_begin < tokens; ++i) {
    const absl::Status loaded = LoadSpan(layer, i, tokens);
    if (!loaded.ok()) {
      Report(fmt::format("layer {}, token {}: {}", layer, spans[i].token_begin, MessageOf(loaded)));
      return spans[i].token_begin;
    }
  }
  return tokens;
}

// A page is K [n, kv_heads, head_dim], then V of the same shape (core/layout.h).
absl::Status LayerLoader::LoadSpan(uint32_t layer, size_t index, uint64_t tokens) {
  const RestoredSpan& span = ticket_->spans()[index];
  const size_t row = table_.cache->row_bytes();
  staging_.resize(2 * row * span.chunk_token_count);
  TK_RETURN_IF_ERROR(ticket_->ReadPage(index, layer, staging_));
  const uint64_t count = std::min<uint64_t>(span.token_count, tokens - span.token_begin);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t token = span.token_begin + i;
    const std::byte* key = staging_.data() + (span.first_in_chunk + i) * row;
    engine_->PlaceKey(table_, layer, token, key, span.stored_position + i);
    std::memcpy(table_.At(Plane::kValues, layer, token), key + span.chunk_token_count * row, row);
  }
  return absl::OkStatus();
}

}  // namespace turnkeep::llama
