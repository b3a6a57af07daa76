// Many sessions under one system prompt: the prompt comes from the store if it is there, and the
// sessions decode together through attention plans, then again with attention one by one.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <string>

#include "core/kv_store.h"
#include "llama/engine.h"

namespace turnkeep::llama {

struct BatchOptions {
  std::string session;    // the system prompt's
  uint32_t sessions = 0;  // 1..Engine::kMaxBatchRows
  uint32_t system_tokens = 0;
  uint32_t user_tokens = 0;  // of each session, random
  uint32_t answer_tokens = 0;
  uint32_t chunk_tokens = kDefaultChunkTokens;
  uint64_t seed = 1;
};
struct BatchReport {
  uint64_t restored_tokens = 0;  // of the system prompt
  double system_ms = 0;          // to have its KV
  double tokens_per_s = 0;       // of all sessions, planner auto
  double tokens_per_s_one_by_one = 0;
  uint32_t same_answers = 0;  // sessions whose tokens agree in both
};

// `store` may be null. ResourceExhausted, InvalidArgument: what does not fit the model's context.
absl::StatusOr<BatchReport> RunBatch(Engine* engine, KvStore* store, const BatchOptions& options);

}  // namespace turnkeep::llama
