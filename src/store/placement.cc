#include "store/placement.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/units.h"
#include "store/chunk_array.h"

namespace turnkeep {

namespace {

// How many chunks one search for a victim looks at: of the wanted slot size, and of any.
constexpr uint32_t kPreferredScan = 64;
constexpr uint32_t kAnyScan = 1024;

void Add(uint32_t& count) {
  TK_CHECK(count != UINT32_MAX);
  ++count;
}

void Subtract(uint32_t& count) {
  TK_CHECK(count != 0);
  --count;
}

uint64_t Share(uint64_t capacity, double share) {
  return static_cast<uint64_t>(static_cast<double>(capacity) * share);
}

}  // namespace

Placement::Placement(const PlacementOptions& options, std::unique_ptr<EvictionPolicy> host_policy,
                     std::unique_ptr<EvictionPolicy> disk_policy)
    : options_(options),
      host_policy_(std::make_unique<KeepOrder>(std::move(host_policy))),
      disk_policy_(std::make_unique<KeepOrder>(std::move(disk_policy))) {
  host_.capacity_bytes = options.host_capacity_bytes;
  disk_.capacity_bytes = options.disk_capacity_bytes;
}

Placement::State& Placement::At(ChunkIndex chunk) {
  TK_CHECK(chunk != kNoChunk);
  return AtChunk(states_, chunk);
}

uint64_t Placement::BytesOf(ChunkIndex chunk) const { return states_[chunk].blocks * kBlockBytes; }

void Placement::Handle(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  const size_t first = actions->size();
  Decide(event, actions);
  for (size_t i = first; i < actions->size(); ++i) Annotate(event.now_ns, &(*actions)[i]);
}

void Placement::HandleEach(PlacementEvent event, std::span<const ChunkIndex> chunks,
                           std::vector<PlacementAction>* actions) {
  switch (event.kind) {
    case PlacementEvent::Kind::kTouched:
      for (const ChunkIndex chunk : chunks) {
        Touched(chunk, event);
        event.turn.next = chunk;
      }
      break;
    case PlacementEvent::Kind::kHostPinned:
      for (const ChunkIndex chunk : chunks) Add(At(chunk).host_pins);
      return;
    case PlacementEvent::Kind::kHostUnpinned:
      for (const ChunkIndex chunk : chunks) Subtract(At(chunk).host_pins);
      return;
    default:
      for (const ChunkIndex chunk : chunks) {
        event.chunk = chunk;
        Handle(event, actions);
        event.turn.next = chunk;
      }
      return;
  }
  const size_t first = actions->size();
  Pump(event.now_ns, actions);
  for (size_t i = first; i < actions->size(); ++i) Annotate(event.now_ns, &(*actions)[i]);
}

void Placement::Annotate(int64_t now_ns, PlacementAction* action) const {
  const State& state = states_[action->chunk];
  const bool disk = action->kind == PlacementAction::Kind::kEvictDisk;
  action->keep = (disk ? disk_policy_ : host_policy_)->keep(action->chunk);
  action->next_use = state.next_use;
  action->idle_ns = std::max<int64_t>(0, now_ns - state.last_use_ns);
  action->of_chunks = (disk ? disk_ : host_).chunk_count + 1;
}

void Placement::Decide(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  using Kind = PlacementEvent::Kind;
  using Reason = PlacementAction::Reason;
  const bool prefetch_ended = event.kind == Kind::kHostFilled && Prefetching(event.chunk);
  switch (event.kind) {
    case Kind::kHostReserved:
      host_.used_bytes += event.bytes;
      if (host_.used_bytes - host_.leaving_bytes >
          Share(host_.capacity_bytes, options_.high_watermark)) {
        ShrinkHost(Share(host_.capacity_bytes, options_.low_watermark), 0, Reason::kWatermark,
                   actions);
      }
      break;
    case Kind::kHostUnreserved:
      TK_CHECK(host_.used_bytes >= event.bytes);
      host_.used_bytes -= event.bytes;
      break;
    case Kind::kHostFilled:
      HostFilled(event, actions);
      break;
    case Kind::kHostLost:
      if (InHost(event.chunk)) DropHost(event.chunk);
      break;
    case Kind::kDiskWritten:
      DiskWritten(event, actions);
      break;
    case Kind::kDiskWriteFailed:
      DiskWriteFailed(event, actions);
      break;
    case Kind::kDiskFound:
      DiskFound(event);
      break;
    case Kind::kDiskLost:
      if (OnDisk(event.chunk)) DropDisk(event.chunk);
      break;
    case Kind::kTouched:
      Touched(event.chunk, event);
      break;
    case Kind::kTurnEnded:
      if (event.turn.is_use) NoteUse(event.chunk, /*used=*/true);
      host_policy_->NoteTurn(event.chunk, event.turn, event.now_ns);
      disk_policy_->NoteTurn(event.chunk, event.turn, event.now_ns);
      Retry(event.chunk);
      break;
    case Kind::kHostSpaceNeeded: {
      const uint64_t staying = host_.used_bytes - host_.leaving_bytes;
      ShrinkHost(staying - std::min(staying, event.bytes), event.bytes, Reason::kSpace, actions);
      break;
    }
    case Kind::kDiskSpaceNeeded:
      ShrinkDisk(disk_.used_bytes - std::min(disk_.used_bytes, event.bytes), event.bytes,
                 Reason::kSpace, actions);
      break;
    case Kind::kWriteWanted: {
      const State& state = At(event.chunk);
      if ((state.flags & kInHost) && !(state.flags & (kOnDisk | kWriting))) {
        StartWrite(event.chunk, /*leaving=*/false, actions);
      }
      break;
    }
    default:
      if (!HandlePrefetch(event, actions)) HandleCounts(event);
  }
  if (!MayPrefetchAfter(event.kind)) return;
  Pump(event.now_ns, actions);
  // Not with every use, since it searches.
  if (event.kind == Kind::kTick || event.kind == Kind::kDiskReadsEnd || prefetch_ended) {
    PumpPredicted(event.now_ns, actions);
  }
}

void Placement::Forget(ChunkIndex chunk) {
  TK_CHECK(!Has(chunk, kInHost) && !Has(chunk, kOnDisk));
  At(chunk).flags &= static_cast<uint8_t>(~kTried);
  host_policy_->Forget(chunk);
  disk_policy_->Forget(chunk);
}

void Placement::Touched(ChunkIndex chunk, const PlacementEvent& event) {
  NoteUse(chunk, /*used=*/true);
  EndDropSoon(chunk, event.now_ns);
  At(chunk).last_use_ns = event.now_ns;
  if (event.turn.is_use) {
    host_policy_->NoteTurn(chunk, event.turn, event.now_ns);
    disk_policy_->NoteTurn(chunk, event.turn, event.now_ns);
  } else {
    host_policy_->Touch(chunk, event.now_ns);
    disk_policy_->Touch(chunk, event.now_ns);
  }
  Retry(chunk);
}

void Placement::DiskFound(const PlacementEvent& event) {
  State& state = At(event.chunk);
  TK_CHECK((state.flags & kOnDisk) == 0);
  state.blocks = static_cast<uint32_t>(event.bytes / kBlockBytes);
  state.flags |= kOnDisk;
  disk_.used_bytes += event.bytes;
  ++disk_.chunk_count;
  disk_policy_->Insert(event.chunk, event.bytes, event.now_ns);
  Consider(event.chunk);
}

void Placement::HandleCounts(const PlacementEvent& event) {
  using Kind = PlacementEvent::Kind;
  State& state = At(event.chunk);
  switch (event.kind) {
    case Kind::kForgotten:
      return Forget(event.chunk);
    case Kind::kHostPinned:
      return Add(state.host_pins);
    case Kind::kHostUnpinned:
      return Subtract(state.host_pins);
    case Kind::kDiskPinned:
      return Add(state.disk_pins);
    case Kind::kDiskUnpinned:
      return Subtract(state.disk_pins);
    case Kind::kHeld:
      return Add(state.holds);
    case Kind::kUnheld:
      return Subtract(state.holds);
    case Kind::kPinned:
      Add(state.pins);
      if (state.pins == 1 && (state.flags & kInHost)) host_.pinned_bytes += BytesOf(event.chunk);
      if (state.pins == 1 && (state.flags & kOnDisk)) disk_.pinned_bytes += BytesOf(event.chunk);
      return;
    case Kind::kUnpinned:
      Subtract(state.pins);
      if (state.pins == 0 && (state.flags & kInHost)) host_.pinned_bytes -= BytesOf(event.chunk);
      if (state.pins == 0 && (state.flags & kOnDisk)) disk_.pinned_bytes -= BytesOf(event.chunk);
      return;
    default:
      TK_CHECK(false);
  }
}

bool Placement::MayPin(Tier tier, uint64_t bytes) const {
  const TierUsage& usage = tier == Tier::kHost ? host_ : disk_;
  return usage.pinned_bytes + bytes <= Share(usage.capacity_bytes, options_.max_pinned_share);
}

void Placement::HostFilled(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  State& state = At(event.chunk);
  TK_CHECK((state.flags & kInHost) == 0);
  state.blocks = static_cast<uint32_t>(event.bytes / kBlockBytes);
  state.flags |= kInHost;
  if (!(state.flags & (kOnDisk | kWriting))) state.last_use_ns = event.now_ns;  // it is new
  if (state.flags & kPrefetching) {
    EndPrefetch(event.chunk);
    state.flags |= kPrefetched;
    prefetch_.unused_bytes += event.bytes;
  }
  Consider(event.chunk);
  if (state.pins > 0) host_.pinned_bytes += event.bytes;
  ++host_.chunk_count;
  host_policy_->Insert(event.chunk, event.bytes, event.now_ns);
  disk_policy_->Touch(event.chunk, event.now_ns);
  if (options_.write_through && disk_.capacity_bytes > 0 && !(state.flags & (kOnDisk | kWriting))) {
    StartWrite(event.chunk, /*leaving=*/false, actions);
  }
}

void Placement::DiskWritten(const PlacementEvent& event, std::vector<PlacementAction>* actions) {
  State& state = At(event.chunk);
  TK_CHECK(state.flags & kWriting);
  const bool leaving = (state.flags & kLeaving) != 0;
  if (leaving) host_.leaving_bytes -= BytesOf(event.chunk);
  state.flags = static_cast<uint8_t>((state.flags & ~(kWriting | kLeaving)) | kOnDisk);
  if (state.pins > 0) disk_.pinned_bytes += BytesOf(event.chunk);
  ++disk_.chunk_count;
  disk_policy_->Insert(event.chunk, BytesOf(event.chunk), event.now_ns);
  Consider(event.chunk);
  if (leaving && HostEvictable(event.chunk)) {
    DropHost(event.chunk);
    actions->push_back(
        {PlacementAction::Kind::kEvictHost, event.chunk, PlacementAction::Reason::kSpace});
  }
}

void Placement::DiskWriteFailed(const PlacementEvent& event,
                                std::vector<PlacementAction>* actions) {
  State& state = At(event.chunk);
  TK_CHECK(state.flags & kWriting);
  const bool leaving = (state.flags & kLeaving) != 0;
  if (leaving) host_.leaving_bytes -= BytesOf(event.chunk);
  state.flags = static_cast<uint8_t>(state.flags & ~(kWriting | kLeaving));
  disk_.used_bytes -= BytesOf(event.chunk);
  // A chunk that had to go and could not be kept is lost: room for what is coming is
  // worth more than what a failing or full disk cannot take.
  if (leaving && InHost(event.chunk) && HostEvictable(event.chunk) && state.holds == 0) {
    DropHost(event.chunk);
    actions->push_back(
        {PlacementAction::Kind::kEvictHost, event.chunk, PlacementAction::Reason::kWriteFailed});
  }
}

bool Placement::HostEvictable(ChunkIndex chunk) const {
  const State& state = states_[chunk];
  if (state.pins > 0 || state.host_pins > 0 || (state.flags & kLeaving)) return false;
  // Without a disk tier the host copy is the last one, which a hold keeps.
  return disk_.capacity_bytes > 0 || state.holds == 0;
}

bool Placement::DiskEvictable(ChunkIndex chunk) const {
  const State& state = states_[chunk];
  if (state.pins > 0 || state.disk_pins > 0 || (state.flags & kPrefetching)) return false;
  return state.holds == 0 || (state.flags & kInHost) != 0;
}

ChunkIndex Placement::Victim(EvictionPolicy& policy, uint64_t preferred_bytes,
                             bool (Placement::*evictable)(ChunkIndex) const) {
  if (preferred_bytes > 0) {
    const ChunkIndex chunk = policy.FindVictim(
        [&](ChunkIndex c) {
          return BytesOf(c) == preferred_bytes && (this->*evictable)(c) &&
                 host_policy_->keep(c) <= kPolicyKeep;
        },
        kPreferredScan);
    if (chunk != kNoChunk) return chunk;
  }
  // What may not go is in use: it moves behind the others, so that no search sees it twice.
  std::vector<ChunkIndex> in_use;
  const ChunkIndex chunk = policy.FindVictim(
      [&](ChunkIndex c) {
        if ((this->*evictable)(c)) return true;
        in_use.push_back(c);
        return false;
      },
      kAnyScan);
  for (const ChunkIndex c : in_use) policy.Touch(c, 0);
  return chunk;
}

void Placement::ShrinkHost(uint64_t target, uint64_t preferred_bytes,
                           PlacementAction::Reason reason, std::vector<PlacementAction>* actions) {
  while (host_.used_bytes - host_.leaving_bytes > target) {
    const ChunkIndex chunk = Victim(*host_policy_, preferred_bytes, &Placement::HostEvictable);
    if (chunk == kNoChunk) return;
    State& state = states_[chunk];
    if (state.flags & kWriting) {
      state.flags |= kLeaving;  // goes as soon as the write that is under way ends
      host_.leaving_bytes += BytesOf(chunk);
      continue;
    }
    const bool unwanted = host_policy_->keep(chunk) == kDropSoonKeep && state.holds == 0;
    if (!(state.flags & kOnDisk) && !unwanted && disk_.capacity_bytes > 0 &&
        StartWrite(chunk, true, actions))
      continue;
    if (!(state.flags & kOnDisk) && state.holds > 0) {
      host_policy_->Touch(chunk, 0);
      return;
    }
    PlacementAction::Reason why = reason;
    if (!(state.flags & kOnDisk)) {
      why = unwanted                   ? PlacementAction::Reason::kDropped
            : disk_.capacity_bytes > 0 ? PlacementAction::Reason::kDiskFull
                                       : PlacementAction::Reason::kNoDiskTier;
    }
    DropHost(chunk);
    actions->push_back({PlacementAction::Kind::kEvictHost, chunk, why});
  }
}

bool Placement::ShrinkDisk(uint64_t target, uint64_t preferred_bytes,
                           PlacementAction::Reason reason, std::vector<PlacementAction>* actions) {
  while (disk_.used_bytes > target) {
    const ChunkIndex chunk = Victim(*disk_policy_, preferred_bytes, &Placement::DiskEvictable);
    if (chunk == kNoChunk) return false;
    DropDisk(chunk);
    actions->push_back({PlacementAction::Kind::kEvictDisk, chunk, reason});
  }
  return true;
}

bool Placement::StartWrite(ChunkIndex chunk, bool leaving, std::vector<PlacementAction>* actions) {
  const uint64_t bytes = BytesOf(chunk);
  if (bytes > disk_.capacity_bytes) return false;
  if (disk_.used_bytes + bytes > Share(disk_.capacity_bytes, options_.high_watermark)) {
    const uint64_t low = Share(disk_.capacity_bytes, options_.low_watermark);
    ShrinkDisk(low - std::min(low, bytes), 0, PlacementAction::Reason::kWatermark, actions);
    if (disk_.used_bytes + bytes > disk_.capacity_bytes) return false;
  }
  State& state = states_[chunk];
  state.flags |= kWriting;
  disk_.used_bytes += bytes;
  if (leaving) {
    state.flags |= kLeaving;
    host_.leaving_bytes += bytes;
  }
  actions->push_back({PlacementAction::Kind::kWriteToDisk, chunk, PlacementAction::Reason::kNone});
  return true;
}

void Placement::DropHost(ChunkIndex chunk) {
  State& state = states_[chunk];
  const uint64_t bytes = BytesOf(chunk);
  if (state.flags & kLeaving) host_.leaving_bytes -= bytes;
  state.flags = static_cast<uint8_t>(state.flags & ~(kInHost | kLeaving));
  host_.used_bytes -= bytes;
  --host_.chunk_count;
  if (state.pins > 0) host_.pinned_bytes -= bytes;
  host_policy_->Remove(chunk);
  NoteUse(chunk, /*used=*/false);
  ForgetDropSoon(chunk);
  Consider(chunk);
}

void Placement::DropDisk(ChunkIndex chunk) {
  State& state = states_[chunk];
  const uint64_t bytes = BytesOf(chunk);
  state.flags = static_cast<uint8_t>(state.flags & ~kOnDisk);
  disk_.used_bytes -= bytes;
  --disk_.chunk_count;
  if (state.pins > 0) disk_.pinned_bytes -= bytes;
  disk_policy_->Remove(chunk);
  ForgetDropSoon(chunk);
  Consider(chunk);
}

}  // namespace turnkeep
