// What hints say about keeping, around a policy: chunks that nobody will use go first (drop soon),
// then those of the policy in its order, then the retained ones, of lower priority first. Within a
// part that is not the policy's the least recently used goes first. Eight bytes a chunk more, and
// one for the part.
//
// Thread-compatible.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/hint.h"
#include "store/chunk_list.h"
#include "store/policy.h"

namespace turnkeep {

inline constexpr int8_t kDropSoonKeep = -1;
inline constexpr int8_t kPolicyKeep = 0;  // what a chunk has that no hint speaks of

class KeepOrder final : public EvictionPolicy {
 public:
  explicit KeepOrder(std::unique_ptr<EvictionPolicy> policy) : policy_(std::move(policy)) {}

  std::string_view name() const override { return policy_->name(); }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  void Forget(ChunkIndex chunk) override { policy_->Forget(chunk); }
  void Expect(ChunkIndex chunk, int64_t next_use) override { policy_->Expect(chunk, next_use); }
  void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) override {
    if (turn.is_use && links_.Contains(chunk)) links_.MoveToNewest(ListOf(keep(chunk)), chunk);
    policy_->NoteTurn(chunk, turn, now_ns);
  }
  void SetBelow(ChunkIndex chunk, bool below) override { policy_->SetBelow(chunk, below); }
  ChunkIndex FindNearest(const std::function<bool(ChunkIndex)>& accept, uint32_t limit,
                         int64_t now_ns) override {
    return policy_->FindNearest(accept, limit, now_ns);
  }
  double Worth(ChunkIndex chunk) const override { return policy_->Worth(chunk); }
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

  int8_t keep(ChunkIndex chunk) const { return chunk < keep_.size() ? keep_[chunk] : kPolicyKeep; }
  // Moves the chunk to another part: kDropSoonKeep, kPolicyKeep, or 1 to kMaxRetainPriority.
  // `member_bytes` as Insert was told; 0: the chunk is not in the tier.
  void SetKeep(ChunkIndex chunk, int8_t keep, uint64_t member_bytes, int64_t now_ns);

 private:
  ChunkLinks::List& ListOf(int8_t keep) { return lists_[static_cast<size_t>(keep + 1)]; }
  // From the oldest, at most `limit`, of which it takes away what it has shown.
  ChunkIndex FindIn(const ChunkLinks::List& list, const std::function<bool(ChunkIndex)>& accept,
                    uint32_t* limit) const;

  const std::unique_ptr<EvictionPolicy> policy_;
  uint32_t policy_count_ = 0;  // its members
  ChunkLinks links_;
  std::array<ChunkLinks::List, kMaxRetainPriority + 2>
      lists_;  // by keep + 1; the policy's is empty
  std::vector<int8_t> keep_;
};

}  // namespace turnkeep
