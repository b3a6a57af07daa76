#include "store/keep_order.h"

#include "core/check.h"
#include "store/chunk_array.h"

namespace turnkeep {

void KeepOrder::Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) {
  if (keep(chunk) != kPolicyKeep) return links_.PushNewest(ListOf(keep(chunk)), chunk);
  policy_->Insert(chunk, bytes, now_ns);
  ++policy_count_;
}

void KeepOrder::Touch(ChunkIndex chunk, int64_t now_ns) {
  if (links_.Contains(chunk)) links_.MoveToNewest(ListOf(keep(chunk)), chunk);
  // Of no member of the policy: it learns from the use all the same.
  policy_->Touch(chunk, now_ns);
}

void KeepOrder::Remove(ChunkIndex chunk) {
  if (keep(chunk) != kPolicyKeep) return links_.Unlink(ListOf(keep(chunk)), chunk);
  policy_->Remove(chunk);
  --policy_count_;
}

void KeepOrder::SetKeep(ChunkIndex chunk, int8_t to, uint64_t member_bytes, int64_t now_ns) {
  TK_CHECK(to >= kDropSoonKeep && to <= kMaxRetainPriority);
  if (keep(chunk) == to) return;
  if (member_bytes > 0) Remove(chunk);
  AtChunk(keep_, chunk, kPolicyKeep) = to;
  if (member_bytes > 0) Insert(chunk, member_bytes, now_ns);
}

ChunkIndex KeepOrder::FindIn(const ChunkLinks::List& list,
                             const std::function<bool(ChunkIndex)>& accept, uint32_t* limit) const {
  for (ChunkIndex c = list.oldest; c != kNoChunk && *limit > 0; c = links_.Newer(c)) {
    --*limit;
    if (accept(c)) return c;
  }
  return kNoChunk;
}

ChunkIndex KeepOrder::FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) {
  ChunkIndex chunk = FindIn(ListOf(kDropSoonKeep), accept, &limit);
  if (chunk != kNoChunk) return chunk;
  chunk = policy_->FindVictim(accept, limit);
  // A retained chunk goes only when the policy has shown all it has.
  if (chunk != kNoChunk || policy_count_ > limit) return chunk;
  limit -= policy_count_;
  for (int8_t keep = 1; chunk == kNoChunk && keep <= kMaxRetainPriority; ++keep) {
    chunk = FindIn(ListOf(keep), accept, &limit);
  }
  return chunk;
}

}  // namespace turnkeep
