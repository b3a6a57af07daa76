// A conversation of several turns with one model, its KV kept by a store (or not at all),
// every turn checked against the same turn computed from nothing.
//
// Between turns the engine forgets the KV, as a server does that serves others
// meanwhile; the token ids are the conversation's only memory beside the store.
//
// Thread-safety: one call at a time.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/kv_store.h"
#include "llama/engine.h"
#include "llama/kv_bridge.h"

namespace turnkeep::llama {

struct TurnRow {
  uint64_t context_tokens = 0;  // of the prompt: history and the user's turn
  uint64_t pooled_tokens = 0;   // were in the page pool, not loaded
  uint64_t restored_host_tokens = 0;
  uint64_t restored_disk_tokens = 0;
  uint64_t computed_tokens = 0;
  double ttft_ms = 0;            // with the store
  double recompute_ttft_ms = 0;  // from nothing, in a cache of its own; 0: not asked for
  double tokens_per_s = 0;       // of the answer
  uint64_t dropped_tokens = 0;   // of the history, because the context overflowed
  bool compared = false;
  // All logits bit by bit, and all tokens. After a truncation the comparison is with a cache that
  // was truncated in the same way and never stored; rotated keys, which are rounded once for each
  // truncation there and once in all here, are then compared by tokens alone.
  bool identical = false;
  std::string miss_reason;
  // Waits for restored layers, the memory of the read buffer, and both as predicted before
  // (CachedAttention, section 3.2); unset where nothing was restored, or at first.
  double stall_ms = 0;
  uint64_t buffer_bytes = 0;
  std::optional<PipelineRates::Prediction> predicted;
  std::vector<uint32_t> answer;
};

class Conversation {
 public:
  struct Options {
    std::string session;
    DType dtype = DType::kFloat32;
    bool raw_keys = false;
    uint32_t answer_tokens = 32;
    uint32_t chunk_tokens = kDefaultChunkTokens;
    bool compare = true;  // compute every turn a second time without the store
    // A context that overflows loses the oldest half of its history, and the cache stays valid
    // (CachedAttention, section 3.4). Else it is an error.
    bool truncate_oldest_half = false;
    KvDevice* device = nullptr;  // see KvBridge::Options
    std::function<void(const std::string&)> log = [](const std::string&) {};
  };

  // `store` may be null. Store and engine outlive the conversation.
  static absl::StatusOr<std::unique_ptr<Conversation>> Create(Engine* engine, KvStore* store,
                                                              Options options);

  // The tokens so far: prompts and answers.
  const std::vector<uint32_t>& history() const { return history_; }
  void set_history(std::vector<uint32_t> tokens) { history_ = std::move(tokens); }
  // Whether a turn of `user_tokens` still fits the model's context.
  bool Fits(size_t user_tokens) const;

  // Answers `user` greedily. ResourceExhausted when the turn does not fit the context. Blocks; the
  // turn's save is through when it returns.
  absl::StatusOr<TurnRow> Turn(std::span<const uint32_t> user);

 private:
  // A turn's answer and the logits that every token of it was chosen by.
  struct Answer {
    std::vector<uint32_t> tokens;
    std::vector<float> logits;  // [tokens, vocab]
  };

  Conversation(Engine* engine, Options options);
  absl::Status Prefill(Sequence* sequence, std::span<const uint32_t> context,
                       std::span<float> logits, TurnRow* row);
  // Goes on from the logits at the front of `answer`.
  absl::Status Decode(Sequence* sequence, uint64_t context_tokens, Answer* answer);
  absl::Status Compare(std::span<const uint32_t> context, const Answer& answer, TurnRow* row);
  // Makes room for a turn of `user_tokens`.
  absl::Status DropOldestHalf(size_t user_tokens, TurnRow* row);

  Engine* const engine_;
  const Options options_;
  std::unique_ptr<PagedKvCache> cache_;
  std::unique_ptr<PagedKvCache> check_cache_;
  std::unique_ptr<KvBridge> bridge_;  // null without a store
  std::vector<uint32_t> history_;
  // With truncation: the last turn's cache, and the reference's, which goes through all turns.
  std::unique_ptr<Sequence> last_;
  std::unique_ptr<Sequence> reference_;
  uint64_t reference_tokens_ = 0;
  bool truncated_ = false;
};

}  // namespace turnkeep::llama
