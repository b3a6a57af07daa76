// Placement's prefetches: CachedAttention's scheduler-aware fetching (arXiv 2403.19708, section
// 3.3.1) by chunks. The paper's window is host bytes for prefetch / mean session bytes, in jobs;
// ours is the same bytes, filled in the order of the next use.
#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/units.h"
#include "store/placement.h"

namespace turnkeep {

namespace {

// How many chunks one search for a victim looks at.
constexpr uint32_t kVictimScan = 256;
// A budget that lay idle saves up this much.
constexpr double kBudgetSeconds = 1;
// By so much what a prediction brings must be worth more than what goes for it: a step of the ages
// that next_use tells apart, so that two of about one age do not take turns.
constexpr double kSwapGain = 1.5;
constexpr double kExpectedWorth = std::numeric_limits<double>::infinity();

}  // namespace

bool Placement::HandlePrefetch(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  using Kind = PlacementEvent::Kind;
  switch (event.kind) {
    case Kind::kExpected:
      Expected(event, actions);
      return true;
    case Kind::kDemoteWanted:
      Demote(event.chunk, actions);
      return true;
    case Kind::kKeep:
      SetKeep(event.chunk, event.keep, event.now_ns);
      return true;
    case Kind::kPrefetchFailed:
      // A save may have brought the chunk meanwhile.
      if (Has(event.chunk, kPrefetching)) EndPrefetch(event.chunk);
      ++prefetch_.failed;
      Consider(event.chunk);
      return true;
    case Kind::kDiskReadsBegin:
      ++disk_readers_;
      return true;
    case Kind::kDiskReadsEnd:
      TK_CHECK(disk_readers_ > 0);
      --disk_readers_;
      return true;
    case Kind::kTick:
      return true;
    default:
      return false;
  }
}

// Not after events that ask for room: what they freed is theirs.
bool Placement::MayPrefetchAfter(PlacementEvent::Kind kind) {
  using Kind = PlacementEvent::Kind;
  return kind == Kind::kExpected || kind == Kind::kPrefetchFailed || kind == Kind::kDiskReadsEnd ||
         kind == Kind::kTick || kind == Kind::kTouched || kind == Kind::kHostFilled;
}

void Placement::Expected(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  host_policy_->Expect(event.chunk, event.next_use);
  disk_policy_->Expect(event.chunk, event.next_use);
  State& state = At(event.chunk);
  if (event.next_use != kNoExpectedUse) EndDropSoon(event.chunk, event.now_ns);
  if (state.next_use == event.next_use) return;
  wanted_.erase({state.next_use, event.chunk});
  state.next_use = event.next_use;
  state.flags = static_cast<uint8_t>(state.flags & ~kTried);
  if (event.next_use == kNoExpectedUse) {
    if (state.flags & kPrefetching)
      actions->push_back({.kind = PlacementAction::Kind::kCancelPrefetch, .chunk = event.chunk});
    NoteUse(event.chunk, /*used=*/false);  // its part of the window is for others
  }
  Consider(event.chunk);
}

void Placement::Demote(ChunkIndex chunk, std::vector<PlacementAction>* actions) {
  State& state = At(chunk);
  if (!(state.flags & kInHost) || !HostEvictable(chunk)) return;
  if (state.flags & kOnDisk) {
    DropHost(chunk);
    actions->push_back({.kind = PlacementAction::Kind::kEvictHost,
                        .chunk = chunk,
                        .reason = PlacementAction::Reason::kDemoted});
  } else if (state.flags & kWriting) {
    state.flags |= kLeaving;  // goes when the write that is under way ends
    host_.leaving_bytes += BytesOf(chunk);
  } else if (disk_.capacity_bytes > 0) {
    StartWrite(chunk, /*leaving=*/true, actions);
  }
}

void Placement::SetKeep(ChunkIndex chunk, int8_t keep, int64_t now_ns) {
  const State& state = At(chunk);
  const uint64_t bytes = BytesOf(chunk);
  // Nobody holds an index for what is dropped soon: without a copy there is nothing to say it of.
  if (keep == kDropSoonKeep && (state.flags & (kInHost | kOnDisk)) == 0) return;
  host_policy_->SetKeep(chunk, keep, state.flags & kInHost ? bytes : 0, now_ns);
  disk_policy_->SetKeep(chunk, keep, state.flags & kOnDisk ? bytes : 0, now_ns);
}

// With its last copy, since the index may come to mean another chunk.
void Placement::ForgetDropSoon(ChunkIndex chunk) {
  if ((states_[chunk].flags & (kInHost | kOnDisk)) == 0) EndDropSoon(chunk, 0);
}

void Placement::EndDropSoon(ChunkIndex chunk, int64_t now_ns) {
  if (host_policy_->keep(chunk) == kDropSoonKeep) SetKeep(chunk, kPolicyKeep, now_ns);
}

void Placement::EndPrefetch(ChunkIndex chunk) {
  State& state = states_[chunk];
  state.flags = static_cast<uint8_t>(state.flags & ~kPrefetching);
  prefetch_.in_flight_bytes -= BytesOf(chunk);
}

// A prefetched chunk was used, or leaves the host tier.
void Placement::NoteUse(ChunkIndex chunk, bool used) {
  if (!Has(chunk, kPrefetched)) return;
  State& state = states_[chunk];
  state.flags = static_cast<uint8_t>(state.flags & ~kPrefetched);
  prefetch_.unused_bytes -= BytesOf(chunk);
  ++(used ? prefetch_.used : prefetch_.wasted);
}

bool Placement::MayBePrefetched(ChunkIndex chunk) const {
  const uint8_t flags = states_[chunk].flags;
  const bool only_on_disk = (flags & (kInHost | kOnDisk)) == kOnDisk;
  return only_on_disk && (flags & (kPrefetching | kTried)) == 0;
}

// Enters the chunk among the wanted, or those that the policy may predict, or takes it out.
void Placement::Consider(ChunkIndex chunk) {
  const State& state = states_[chunk];
  if (options_.prefetch_bytes > 0) {
    const bool predicted = state.next_use == kNoExpectedUse && MayBePrefetched(chunk);
    host_policy_->SetBelow(chunk, predicted);
  }
  if (state.next_use == kNoExpectedUse) return;
  if (MayBePrefetched(chunk)) {
    wanted_.emplace(state.next_use, chunk);
  } else {
    wanted_.erase({state.next_use, chunk});
  }
}

// After a use or the end of a turn a prefetch on prediction may be tried again.
void Placement::Retry(ChunkIndex chunk) {
  State& state = At(chunk);
  if (options_.prefetch_bytes == 0 || state.next_use != kNoExpectedUse) return;
  state.flags = static_cast<uint8_t>(state.flags & ~kTried);
  Consider(chunk);
}

void Placement::Pump(int64_t now_ns, std::vector<PlacementAction>* actions) {
  if (options_.prefetch_bytes == 0 || disk_readers_ > 0) return;
  const double rate = static_cast<double>(options_.prefetch_bytes_per_second);
  if (rate > 0 && now_ns > budget_ns_) {
    const double seconds = static_cast<double>(now_ns - budget_ns_) * 1e-9;
    budget_bytes_ = std::min(budget_bytes_ + rate * seconds, rate * kBudgetSeconds);
    budget_ns_ = now_ns;
  }
  while (!wanted_.empty()) {
    const ChunkIndex chunk = wanted_.begin()->second;
    if (!MayBegin(BytesOf(chunk)) || !MakeRoomFor(chunk, kExpectedWorth, actions)) return;
    wanted_.erase(wanted_.begin());
    Begin(chunk, actions);
  }
}

void Placement::PumpPredicted(int64_t now_ns, std::vector<PlacementAction>* actions) {
  if (options_.prefetch_bytes == 0 || disk_readers_ > 0 || !wanted_.empty()) return;
  for (;;) {
    const ChunkIndex chunk = host_policy_->FindNearest(
        [&](ChunkIndex c) { return host_policy_->keep(c) >= kPolicyKeep; }, kVictimScan, now_ns);
    if (chunk == kNoChunk || !MayBegin(BytesOf(chunk))) return;
    if (!MakeRoomFor(chunk, host_policy_->Worth(chunk), actions)) return;
    Begin(chunk, actions);
  }
}

bool Placement::MayBegin(uint64_t bytes) const {
  const uint64_t in_flight = prefetch_.in_flight_bytes;
  if (in_flight + prefetch_.unused_bytes + bytes > options_.prefetch_bytes) return false;
  if (in_flight > 0 && in_flight + bytes > options_.prefetch_in_flight_bytes) return false;
  // A chunk larger than a full budget takes all of it.
  const double rate = static_cast<double>(options_.prefetch_bytes_per_second);
  return rate == 0 || budget_bytes_ >= std::min(static_cast<double>(bytes), rate * kBudgetSeconds);
}

void Placement::Begin(ChunkIndex chunk, std::vector<PlacementAction>* actions) {
  const uint64_t bytes = BytesOf(chunk);
  states_[chunk].flags |= kPrefetching | kTried;
  host_policy_->SetBelow(chunk, false);
  host_.used_bytes += bytes;
  prefetch_.in_flight_bytes += bytes;
  ++prefetch_.begun;
  if (options_.prefetch_bytes_per_second > 0) budget_bytes_ -= static_cast<double>(bytes);
  actions->push_back({.kind = PlacementAction::Kind::kPrefetch, .chunk = chunk});
}

// `worth`: what the policy predicts of the chunk; of one that is expected, more than of all others.
bool Placement::MakeRoomFor(ChunkIndex chunk, double worth, std::vector<PlacementAction>* actions) {
  const uint64_t bytes = BytesOf(chunk);
  const int64_t next_use = states_[chunk].next_use;
  const bool predicted = next_use == kNoExpectedUse;
  // What is between the watermarks is left to saves and restores.
  const auto limit =
      static_cast<uint64_t>(static_cast<double>(host_.capacity_bytes) * options_.low_watermark);
  while (host_.used_bytes + bytes > limit) {
    bool worth_less = true;
    const ChunkIndex victim = host_policy_->FindVictim(
        [&](ChunkIndex c) {
          // The order is that of worth: who follows is worth no less, and the search ends.
          worth_less = !predicted || host_policy_->Worth(c) * kSwapGain < worth;
          if (!worth_less) return true;
          const bool later =
              predicted ? states_[c].next_use == kNoExpectedUse : states_[c].next_use > next_use;
          return OnDisk(c) && HostEvictable(c) && later && host_policy_->keep(c) <= kPolicyKeep;
        },
        kVictimScan);
    if (victim == kNoChunk || !worth_less) return false;
    DropHost(victim);
    actions->push_back({.kind = PlacementAction::Kind::kEvictHost,
                        .chunk = victim,
                        .reason = PlacementAction::Reason::kPrefetch});
  }
  return true;
}

Placement::PrefetchUsage Placement::prefetch() const {
  PrefetchUsage usage = prefetch_;
  usage.waiting_count = wanted_.size();
  return usage;
}

}  // namespace turnkeep
