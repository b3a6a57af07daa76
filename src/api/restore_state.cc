#include "api/restore_state.h"

#include <algorithm>

namespace turnkeep {

void RestoreState::Update(const wire::Progress& progress) {
  absl::MutexLock lock(&mutex_);
  if (over_ && started_ && valid_tokens_ == 0) return;
  valid_tokens_ =
      started_ ? std::min(valid_tokens_, progress.valid_tokens()) : progress.valid_tokens();
  started_ = true;
  layers_ready_ = std::max(layers_ready_, progress.layers_ready());
  over_ = over_ || progress.finished();
  if (!progress.miss_reason().empty()) miss_reason_ = progress.miss_reason();
  Decide();
}

void RestoreState::Lose(const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  if (!over_) miss_reason_ = reason;
  over_ = true;
  Decide();
}

void RestoreState::Shrink(uint64_t tokens, const std::string& reason) {
  absl::MutexLock lock(&mutex_);
  if (tokens >= valid_tokens_) return;
  valid_tokens_ = tokens;
  miss_reason_ = reason;
  Decide();
}

void RestoreState::Decide() {
  const bool all = over_ || (started_ && valid_tokens_ == 0);
  decided_layers_.store(all ? UINT64_MAX : layers_ready_, std::memory_order_release);
}

uint64_t RestoreState::TokensOf(uint32_t layer) const {
  absl::MutexLock lock(&mutex_);
  return layers_ready_ > layer ? valid_tokens_ : 0;
}

uint64_t RestoreState::valid_tokens() const {
  absl::MutexLock lock(&mutex_);
  return valid_tokens_;
}

bool RestoreState::layer_ready(uint32_t layer) const {
  absl::MutexLock lock(&mutex_);
  return layers_ready_ > layer;
}

std::string RestoreState::miss_reason() const {
  absl::MutexLock lock(&mutex_);
  return miss_reason_;
}

}  // namespace turnkeep
