// Decodes many sequences together: what their block tables share is attended once for all of them.
//
// Keeps the batch as a prefix forest and lets an attention planner plan it; a decode step only
// grows the leaves, so that it is planned once as long as nobody joins or leaves.
//
// Thread-safety: one call at a time, and none of the engine's beside it.
//
//   TK_ASSIGN_OR_RETURN(auto batch, BatchDecoder::Create(engine, cache, "auto"));
//   batch->Join(&sequence, context_tokens);  // its KV but the last token's is in the cache
//   TK_RETURN_IF_ERROR(batch->Step(last_tokens, logits));
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "gpu_tier/attention_planner.h"
#include "gpu_tier/prefix_forest.h"
#include "llama/engine.h"

namespace turnkeep::llama {

class BatchDecoder {
 public:
  // Engine and cache, of float32, outlive it. InvalidArgument lists the planners.
  static absl::StatusOr<std::unique_ptr<BatchDecoder>> Create(Engine* engine,
                                                              const PagedKvCache* cache,
                                                              std::string_view planner);

  // `sequence`, which outlives its stay, holds the KV of its first `tokens` tokens.
  void Join(Sequence* sequence, uint32_t tokens);
  void LeaveAll();

  // Appends tokens[i] to the i-th sequence that joined; its logits are [i, vocab].
  // ResourceExhausted when the cache is full; then nothing was appended.
  absl::Status Step(std::span<const uint32_t> tokens, std::span<float> logits);

  // How often the planner planned anew.
  uint64_t plan_count() const { return planner_->plan_count(); }

 private:
  BatchDecoder(Engine* engine, std::unique_ptr<AttentionPlanner> planner)
      : engine_(engine), planner_(std::move(planner)) {}
  absl::Status FollowTables();

  struct Member {
    Sequence* sequence = nullptr;
    uint32_t tokens = 0;
  };
  Engine* const engine_;
  const std::unique_ptr<AttentionPlanner> planner_;
  std::vector<Member> members_;
  std::optional<PrefixForest> forest_;  // unset: made at the next step
};

}  // namespace turnkeep::llama
