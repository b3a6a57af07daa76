// next_use's other half: which chunk of the tier below would be worth most in this one. Buckets by
// class and age hold chunks of one worth; within a bucket who came last is shown first, so that a
// prefix, which leaves after what depends on it, comes back before it.
#include <algorithm>
#include <bit>
#include <numeric>

#include "store/next_use_policy.h"

namespace turnkeep {

namespace {

constexpr int64_t kAgingStepNs = 100'000'000;  // the first age's length

}  // namespace

void NextUsePolicy::SetBelow(ChunkIndex chunk, bool below) {
  State& state = At(chunk);
  // Of who was never used here (found at opening) nothing is known.
  if (below == (state.below != kNotBelow) || (below && state.last_use_ns == kNever)) return;
  if (below) {
    EnterBelow(chunk, state);
  } else {
    LeaveBelow(chunk, state);
  }
}

uint16_t NextUsePolicy::BucketOf(const State& state) const {
  return static_cast<uint16_t>(state.use_class * kAges + UseHazards::AgeOf(AgeSeconds(state)));
}

void NextUsePolicy::EnterBelow(ChunkIndex chunk, State& state) {
  if (below_.empty()) below_.resize(kBuckets);
  state.below = BucketOf(state);
  below_links_.PushNewest(below_[state.below], chunk);
  ++below_count_;
  MarkBucket(state.below);
}

void NextUsePolicy::LeaveBelow(ChunkIndex chunk, State& state) {
  below_links_.Unlink(below_[state.below], chunk);
  --below_count_;
  MarkBucket(state.below);
  state.below = kNotBelow;
}

void NextUsePolicy::MarkBucket(uint32_t bucket) {
  if (rank_of_.empty()) return;
  const uint32_t rank = rank_of_[bucket];
  const uint64_t bit = uint64_t{1} << (rank % 64);
  uint64_t& word = filled_[rank / 64];
  word = below_[bucket].count > 0 ? word | bit : word & ~bit;
}

void NextUsePolicy::RankBuckets() {
  if (values_.empty()) RefreshValues();
  if (values_ranked_ == values_made_) return;
  values_ranked_ = values_made_;
  bucket_at_.resize(kBuckets);
  std::iota(bucket_at_.begin(), bucket_at_.end(), uint16_t{0});
  const auto worth = [this](uint16_t bucket) { return values_[bucket / kAges][bucket % kAges]; };
  std::sort(bucket_at_.begin(), bucket_at_.end(), [&](uint16_t a, uint16_t b) {
    return worth(a) != worth(b) ? worth(a) > worth(b) : a < b;
  });
  rank_of_.resize(kBuckets);
  for (uint32_t rank = 0; rank < kBuckets; ++rank) {
    rank_of_[bucket_at_[rank]] = static_cast<uint16_t>(rank);
  }
  filled_.assign(kBuckets / 64 + 1, 0);
  for (uint32_t bucket = 0; bucket < kBuckets; ++bucket) MarkBucket(bucket);
}

// Moves on who has grown older than its bucket. Each chunk passes every age once.
void NextUsePolicy::AgeBelow() {
  if (aged_ns_ != kNever && now_ns_ - aged_ns_ < kAgingStepNs) return;
  aged_ns_ = now_ns_;
  for (size_t word = 0; word < filled_.size(); ++word) {
    for (uint64_t bits = filled_[word]; bits != 0; bits &= bits - 1) {
      const uint16_t bucket = bucket_at_[word * 64 + static_cast<size_t>(std::countr_zero(bits))];
      for (ChunkIndex chunk = below_[bucket].oldest; chunk != kNoChunk;
           chunk = below_[bucket].oldest) {
        State& state = states_[chunk];
        if (BucketOf(state) == bucket) break;
        LeaveBelow(chunk, state);
        EnterBelow(chunk, state);
      }
    }
  }
}

ChunkIndex NextUsePolicy::FindNearest(const std::function<bool(ChunkIndex)>& accept, uint32_t limit,
                                      int64_t now_ns) {
  if (below_count_ == 0) return kNoChunk;
  AdvanceTo(now_ns);
  RankBuckets();
  AgeBelow();
  for (size_t word = 0; word < filled_.size(); ++word) {
    for (uint64_t bits = filled_[word]; bits != 0; bits &= bits - 1) {
      const uint16_t bucket = bucket_at_[word * 64 + static_cast<size_t>(std::countr_zero(bits))];
      for (ChunkIndex chunk = below_[bucket].newest; chunk != kNoChunk;
           chunk = below_links_.Older(chunk)) {
        if (limit-- == 0) return kNoChunk;
        if (accept(chunk)) return chunk;
      }
    }
  }
  return kNoChunk;
}

double NextUsePolicy::Worth(ChunkIndex chunk) const {
  if (chunk >= states_.size()) return 0;
  if (states_[chunk].expected) return ExpectedValue(expected_.at(chunk));
  const bool known = states_[chunk].last_use_ns != kNever;
  return known && !values_.empty() ? ValueOf(states_[chunk].use_class, chunk) : 0;
}

}  // namespace turnkeep
