#include "llama/layer_saver.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {

LayerSaver::LayerSaver(BlockTable table, std::unique_ptr<SaveTicket> ticket)
    : table_(std::move(table)), ticket_(std::move(ticket)) {
  TK_CHECK(ticket_->accepted_tokens() <= table_.capacity());
  thread_ = std::thread([this] { Run(); });
}

LayerSaver::~LayerSaver() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void LayerSaver::LayersReady(uint32_t count) {
  absl::MutexLock lock(&mutex_);
  ready_ = std::max(ready_, count);
}

void LayerSaver::Commit(absl::Duration deadline) {
  absl::MutexLock lock(&mutex_);
  deadline_ = deadline;
  commit_ = true;
}

absl::StatusOr<CommitResult> LayerSaver::Wait() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&done_));
  return result_;
}

void LayerSaver::Run() {
  const uint32_t layers = table_.cache->options().layers;
  absl::Status status;
  for (uint32_t layer = 0; layer < layers && status.ok(); ++layer) {
    {
      absl::MutexLock lock(&mutex_);
      const auto wanted = [this, layer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ready_ > layer || (stop_ && !commit_);
      };
      mutex_.Await(absl::Condition(&wanted));
      if (stop_ && !commit_) return;
    }
    CopyLayer(layer);
    status = ticket_->FinishLayer(layer);
  }
  absl::Duration deadline;
  {
    absl::MutexLock lock(&mutex_);
    const auto wanted = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return commit_ || stop_; };
    mutex_.Await(absl::Condition(&wanted));
    if (!commit_) return;
    deadline = deadline_;
  }
  absl::StatusOr<CommitResult> result =
      status.ok() ? ticket_->Commit(deadline) : absl::StatusOr<CommitResult>(status);
  absl::MutexLock lock(&mutex_);
  result_ = std::move(result);
  done_ = true;
}

// A page is K [n, kv_heads, head_dim], then V of the same shape (core/layout.h).
void LayerSaver::CopyLayer(uint32_t layer) {
  const size_t row = table_.cache->row_bytes();
  const Plane keys = table_.cache->options().keep_raw_keys ? Plane::kRawKeys : Plane::kKeys;
  const std::span<const ChunkToSave> chunks = ticket_->chunks();
  for (size_t i = 0; i < chunks.size(); ++i) {
    const std::span<std::byte> page = ticket_->Page(i, layer);
    TK_CHECK(page.size() == 2 * row * chunks[i].token_count);
    for (uint32_t t = 0; t < chunks[i].token_count; ++t) {
      const uint64_t token = chunks[i].token_begin + t;
      std::memcpy(page.data() + t * row, table_.At(keys, layer, token), row);
      std::memcpy(page.data() + (chunks[i].token_count + t) * row,
                  table_.At(Plane::kValues, layer, token), row);
    }
  }
}

}  // namespace turnkeep::llama
