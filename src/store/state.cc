#include "store/state.h"

#include <utility>

#include <absl/hash/hash.h>
#include <spdlog/spdlog.h>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

namespace {

using Kind = PlacementEvent::Kind;

// Bounds of what explain remembers and of what status repeats.
constexpr size_t kMaxForgotten = 1u << 16;
constexpr size_t kMaxWarnings = 64;
// Rounds of eviction for one slot: enough to empty a segment of another size class.
constexpr int kMaxEvictionRounds = 4096;

MissingReason ReasonOf(PlacementAction::Reason reason) {
  switch (reason) {
    case PlacementAction::Reason::kNoDiskTier:
      return MissingReason::kEvictedNoDiskTier;
    case PlacementAction::Reason::kDiskFull:
      return MissingReason::kEvictedDiskFull;
    case PlacementAction::Reason::kWriteFailed:
      return MissingReason::kDiskWriteFailed;
    default:
      return MissingReason::kEvictedForRoom;
  }
}

}  // namespace

StoreState::StoreState(StoreOptions store_options, std::unique_ptr<HostArena> host_arena,
                       Placement rules)
    : options(std::move(store_options)),
      clock(options.clock),
      arena(std::move(host_arena)),
      placement(std::move(rules)) {}

void StoreState::Notify(Kind kind, ChunkIndex chunk, uint64_t bytes) {
  Notify({.kind = kind, .chunk = chunk, .bytes = bytes, .now_ns = NowNs()});
}

void StoreState::NotifyAll(Kind kind, std::span<const ChunkIndex> chunks) {
  NotifyAll({.kind = kind, .now_ns = NowNs()}, chunks);
}

void StoreState::NotifyExpected(ChunkIndex chunk, int64_t next_use) {
  Notify({.kind = Kind::kExpected, .chunk = chunk, .now_ns = NowNs(), .next_use = next_use});
}

void StoreState::NotifyKeep(ChunkIndex chunk, int8_t keep) {
  Notify({.kind = Kind::kKeep, .chunk = chunk, .now_ns = NowNs(), .keep = keep});
}

void StoreState::NotifyTurn(const TurnInfo& turn, std::span<const ChunkIndex> backwards,
                            bool tail) {
  if (backwards.empty()) return;
  PlacementEvent event{
      .kind = turn.is_use ? Kind::kTouched : Kind::kTurnEnded, .now_ns = NowNs(), .turn = turn};
  event.turn.tenant = catalog[backwards.front()].tenant;
  if (tail) {
    event.turn.tail = true;
    NotifyAll(event, backwards.first(1));
    event.turn.tail = false;
    event.turn.next = backwards.front();
    backwards = backwards.subspan(1);
  }
  NotifyAll(event, backwards);
}

void StoreState::RefusePrefetch(ChunkIndex chunk) {
  Notify(Kind::kHostUnreserved, kNoChunk, catalog[chunk].slot_blocks * kBlockBytes);
  Notify(Kind::kPrefetchFailed, chunk);
  DropOperationRef(chunk);
}

void StoreState::Notify(const PlacementEvent& event) {
  std::vector<PlacementAction> actions = TakeActions();
  placement.Handle(event, &actions);
  Carry(std::move(actions));
}

void StoreState::NotifyAll(const PlacementEvent& event, std::span<const ChunkIndex> chunks) {
  std::vector<PlacementAction> actions = TakeActions();
  placement.HandleEach(event, chunks, &actions);
  Carry(std::move(actions));
}

// Carrying out an action may notify again: the list is taken first.
std::vector<PlacementAction> StoreState::TakeActions() {
  std::vector<PlacementAction> actions = std::move(actions_);
  actions.clear();
  return actions;
}

void StoreState::Carry(std::vector<PlacementAction> actions) {
  for (const PlacementAction& action : actions) Carry(action);
  actions.clear();
  actions_ = std::move(actions);
}

void StoreState::LogDecision(const PlacementAction& action) {
  const ChunkEntry& entry = catalog[action.chunk];
  decisions.Add({.unix_s = UnixSeconds(),
                 .now_ns = NowNs(),
                 .chunk = entry.id,
                 .tenant = entry.tenant,
                 .slot_bytes = entry.slot_blocks * kBlockBytes,
                 .last_copy = !entry.HasData(),
                 .action = action});
}

void StoreState::Carry(const PlacementAction& action) {
  ChunkEntry& entry = catalog[action.chunk];
  switch (action.kind) {
    case PlacementAction::Kind::kWriteToDisk:
      AddOperationRef(action.chunk);
      to_write.push_back(action.chunk);
      return;
    case PlacementAction::Kind::kPrefetch:
      LogDecision(action);
      AddOperationRef(action.chunk);
      to_prefetch.push_back(action.chunk);
      return;
    case PlacementAction::Kind::kCancelPrefetch:
      LogDecision(action);
      // One that is being read goes on: what has been read is not read in vain.
      if (std::erase(to_prefetch, action.chunk) > 0) RefusePrefetch(action.chunk);
      return;
    case PlacementAction::Kind::kEvictHost:
      FreeHostCopy(action.chunk);
      ++(entry.disk.IsNull() ? counters.host_evictions_lost : counters.host_evictions);
      break;
    case PlacementAction::Kind::kEvictDisk:
      GiveUpDiskCopy(action.chunk);
      ++counters.disk_evictions;
      break;
  }
  LogDecision(action);
  switch (action.reason) {
    case PlacementAction::Reason::kWatermark:
      ++counters.evicted_at_watermark;
      break;
    case PlacementAction::Reason::kPrefetch:
      ++counters.evicted_for_prefetch;
      break;
    case PlacementAction::Reason::kDemoted:
    case PlacementAction::Reason::kDropped:
      ++counters.evicted_by_hint;
      break;
    default:
      ++counters.evicted_for_space;
  }
  if (!entry.HasData()) SetMissing(entry, ReasonOf(action.reason));
}

absl::StatusOr<SlotRef> StoreState::AllocateSlot(uint16_t tenant, uint64_t slot_bytes) {
  for (int round = 0;; ++round) {
    absl::StatusOr<SlotRef> slot = arena->Allocate(tenant, slot_bytes);
    if (slot.ok()) {
      Notify(Kind::kHostReserved, kNoChunk, slot_bytes);
      return slot;
    }
    if (!absl::IsResourceExhausted(slot.status()) || round == kMaxEvictionRounds) return slot;
    const uint64_t used = placement.host().used_bytes;
    Notify(Kind::kHostSpaceNeeded, kNoChunk, slot_bytes);
    if (placement.host().used_bytes == used) return slot;  // nothing could go at once
  }
}

void StoreState::ReleaseSlot(SlotRef slot, uint64_t slot_bytes) {
  arena->Free(slot);
  Notify(Kind::kHostUnreserved, kNoChunk, slot_bytes);
  if (on_room) on_room();
}

void StoreState::FillHost(ChunkIndex chunk, SlotRef slot) {
  ChunkEntry& entry = catalog[chunk];
  TK_CHECK(entry.host.is_null());
  entry.host = slot;
  entry.host_damaged = false;
  Notify(Kind::kHostFilled, chunk, entry.slot_blocks * kBlockBytes);
}

void StoreState::AddOperationRef(ChunkIndex chunk) { ++catalog[chunk].operation_refs; }

void StoreState::DropOperationRef(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  TK_CHECK(entry.operation_refs > 0);
  if (--entry.operation_refs == 0 && entry.session_refs == 0) Forget(chunk);
}

void StoreState::AddSessionRef(ChunkIndex chunk, bool pinned) {
  if (++catalog[chunk].session_refs == 1) ++referenced_chunks;
  if (pinned) Notify(Kind::kPinned, chunk);
}

void StoreState::DropSessionRef(ChunkIndex chunk, bool pinned, std::string_view reason) {
  ChunkEntry& entry = catalog[chunk];
  if (pinned) Notify(Kind::kUnpinned, chunk);
  TK_CHECK(entry.session_refs > 0);
  if (--entry.session_refs > 0) return;
  --referenced_chunks;
  Remember(entry.id, reason);
  if (entry.operation_refs == 0) Forget(chunk);
}

void StoreState::PinHost(std::span<const ChunkIndex> chunks) {
  for (const ChunkIndex chunk : chunks) {
    ChunkEntry& entry = catalog[chunk];
    TK_CHECK(!entry.host.is_null() && entry.host_pins < UINT32_MAX);
    ++entry.host_pins;
  }
  NotifyAll({.kind = Kind::kHostPinned}, chunks);
}

void StoreState::UnpinHost(std::span<const ChunkIndex> chunks) {
  NotifyAll({.kind = Kind::kHostUnpinned}, chunks);
  for (const ChunkIndex chunk : chunks) {
    ChunkEntry& entry = catalog[chunk];
    TK_CHECK(entry.host_pins > 0);
    --entry.host_pins;
    SettleDamagedHost(chunk);
  }
}

void StoreState::SettleDamagedHost(ChunkIndex chunk) {
  const ChunkEntry& entry = catalog[chunk];
  if (!entry.host_damaged || entry.host_pins > 0 || placement.Writing(chunk)) return;
  Notify(Kind::kHostLost, chunk);
  FreeHostCopy(chunk);
}

void StoreState::EvictFromDisk(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  if (entry.disk.IsNull() || !placement.MayEvictFromDisk(chunk)) return;
  Notify(Kind::kDiskLost, chunk);
  GiveUpDiskCopy(chunk);
  ++counters.disk_evictions;
  ++counters.evicted_for_space;
  if (!entry.HasData()) SetMissing(entry, MissingReason::kEvictedForRoom);
}

void StoreState::DropDamagedHost(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  if (entry.host.is_null() || entry.host_damaged) return;
  ++counters.host_digest_failures;
  spdlog::error("chunk {}: host copy does not match its digest and was dropped",
                entry.id.ShortHex());
  entry.host_damaged = true;
  if (entry.disk.IsNull()) SetMissing(entry, MissingReason::kDigestFailed);
  SettleDamagedHost(chunk);
}

void StoreState::DropDamagedDisk(ChunkIndex chunk, MissingReason reason) {
  ChunkEntry& entry = catalog[chunk];
  if (entry.disk.IsNull()) return;
  ++(reason == MissingReason::kDigestFailed ? counters.disk_digest_failures
                                            : counters.disk_read_errors);
  spdlog::error("chunk {}: disk copy {} {}", entry.id.ShortHex(), ToString(entry.disk),
                NameOf(reason));
  Notify(Kind::kDiskLost, chunk);
  GiveUpDiskCopy(chunk);
  if (!entry.HasData()) SetMissing(entry, reason);
}

std::span<std::byte> StoreState::HostImage(const ChunkEntry& entry) const {
  return arena->Memory(entry.host);
}

void StoreState::FreeHostCopy(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  TK_CHECK(!entry.host.is_null() && entry.host_pins == 0);
  arena->Free(entry.host);
  entry.host = SlotRef{};
  entry.host_damaged = false;
  if (on_room) on_room();
}

void StoreState::GiveUpDiskCopy(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  TK_CHECK(!entry.disk.IsNull());
  removals.push_back({.id = entry.id, .extent = entry.disk});
  entry.disk = ExtentRef{};
}

void StoreState::SetMissing(ChunkEntry& entry, MissingReason reason) {
  entry.missing_reason = reason;
  entry.missing_since_unix_s = static_cast<uint32_t>(UnixSeconds());
}

void StoreState::Forget(ChunkIndex chunk) {
  ChunkEntry& entry = catalog[chunk];
  TK_CHECK(entry.session_refs == 0 && entry.operation_refs == 0);
  if (!entry.host.is_null()) {
    Notify(Kind::kHostLost, chunk);
    FreeHostCopy(chunk);
  }
  if (!entry.disk.IsNull()) {
    Notify(Kind::kDiskLost, chunk);
    GiveUpDiskCopy(chunk);
  }
  catalog.EraseIfUnneeded(chunk, [this](ChunkIndex erased) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    Notify(Kind::kForgotten, erased);
  });
}

void StoreState::ForgottenLog::Add(uint64_t key, const Forgotten& what) {
  if (by_key_.insert_or_assign(key, what).second) order_.push_back(key);
  while (order_.size() > kMaxForgotten) {
    by_key_.erase(order_.front());
    order_.pop_front();
  }
}

const Forgotten* StoreState::ForgottenLog::Find(uint64_t key) const {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : &it->second;
}

void StoreState::Remember(const ChunkId& id, std::string_view reason) {
  forgotten_chunks_.Add(id.Prefix64(), {static_cast<uint32_t>(UnixSeconds()), reason});
}

const Forgotten* StoreState::FindForgotten(const ChunkId& id) const {
  return forgotten_chunks_.Find(id.Prefix64());
}

void StoreState::RememberSession(uint16_t tenant, const std::string& name,
                                 std::string_view reason) {
  forgotten_sessions_.Add(absl::HashOf(tenant, name),
                          {static_cast<uint32_t>(UnixSeconds()), reason});
}

const Forgotten* StoreState::FindForgottenSession(uint16_t tenant, const std::string& name) const {
  return forgotten_sessions_.Find(absl::HashOf(tenant, name));
}

void StoreState::Warn(const std::string& message) {
  for (const std::string& warning : warnings) {
    if (warning == message) return;
  }
  if (warnings.size() < kMaxWarnings) warnings.push_back(message);
}

}  // namespace turnkeep
