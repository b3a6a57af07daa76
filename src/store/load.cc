#include "store/load.h"

#include <algorithm>

#include <spdlog/spdlog.h>

#include "core/units.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

void IndexLoader::OnTenant(const TenantRecord& record) {
  state_->mu.AssertHeld();
  state_->registry.AddTenant(record.number, record.name, record.key);
}

void IndexLoader::OnLayout(const LayoutRecord& record) {
  state_->mu.AssertHeld();
  absl::StatusOr<KvLayout> layout = DecodeLayout(record.encoding);
  if (!layout.ok() || !ValidateLayout(*layout).ok()) {
    OnDamaged({.family = IndexFamily::kLayouts, .reason = "layout does not decode"});
    return;
  }
  state_->registry.AddLayout(record.number, *std::move(layout));
}

void IndexLoader::OnChunk(const ChunkRecord& record) {
  state_->mu.AssertHeld();
  const LayoutInfo* layout = state_->registry.LayoutAt(record.layout);
  const bool fits =
      layout != nullptr && state_->registry.TenantAt(record.tenant) != nullptr &&
      record.token_count >= 1 && record.token_count <= layout->layout.chunk_tokens &&
      layout->Geometry(record.token_count).slot_bytes == record.slot_blocks * kBlockBytes;
  if (!fits) {
    OnDamaged({.family = IndexFamily::kChunks, .reason = "chunk record does not fit its layout"});
    // Its slot is claimed; give it up like any other copy.
    state_->removals.push_back({.id = record.id, .extent = record.extent});
    return;
  }
  const ChunkIndex parent =
      state_->catalog.FindOrCreate(record.parent, kNoChunk, record.tenant, record.layout, 0);
  const ChunkIndex chunk = state_->catalog.FindOrCreate(record.id, parent, record.tenant,
                                                        record.layout, record.token_count);
  ChunkEntry& entry = state_->catalog[chunk];
  entry.root = record.root;
  entry.epoch = record.epoch;
  entry.disk = record.extent;
  entry.slot_blocks = record.slot_blocks;
  entry.position_base = static_cast<uint32_t>(record.position_base);
  entry.created_unix_s = static_cast<uint32_t>(record.created_unix_s);
  state_->Notify(Kind::kDiskFound, chunk, record.slot_blocks * kBlockBytes);
}

void IndexLoader::OnSession(const SessionRecord& record) {
  state_->mu.AssertHeld();
  Session* same_name = state_->sessions.Find(record.tenant, record.name);
  if (state_->registry.TenantAt(record.tenant) == nullptr ||
      state_->registry.LayoutAt(record.layout) == nullptr ||
      (same_name != nullptr && same_name->number > record.number)) {
    OnDamaged({.family = IndexFamily::kSessions,
               .key = record.name,
               .reason = "names no known tenant or layout, or is older than one of its name"});
    return;
  }
  if (same_name != nullptr) {
    // Its end did not reach the index, but a later session of the name did.
    superseded_.DeleteSession(same_name->number, same_name->most_span_blocks);
    state_->sessions.Erase(same_name);
  }
  Session* session = state_->sessions.Create(record.tenant, record.name, record.number);
  session->generation = record.generation;
  session->layout = record.layout;
  session->created_unix_s = record.created_unix_s;
  session->last_used_unix_s = record.last_used_unix_s;
  session->ttl_s = record.expires_unix_s == 0
                       ? 0
                       : std::max<int64_t>(1, record.expires_unix_s - record.last_used_unix_s);
  session->pinned = record.pinned;
  session->persisted_span_blocks = session->most_span_blocks = record.span_blocks;
  state_->sessions.UpdateExpiry(session);
}

void IndexLoader::OnSpanBlock(const SpanBlock& block) {
  state_->mu.AssertHeld();
  Session* session = state_->sessions.FindNumber(block.session);
  if (session == nullptr) return;
  if (block.block_index >= session->persisted_span_blocks) {
    // Left over from a longer view; whatever replaces this view takes it along.
    session->most_span_blocks = std::max(session->most_span_blocks, block.block_index + 1);
    return;
  }
  // A gap (a damaged block) ends the view: what follows cannot be placed.
  if (session->spans.size() != size_t{block.block_index} * kSlicesPerSpanBlock) return;
  const LayoutInfo& layout = *state_->registry.LayoutAt(session->layout);
  for (const ChunkSlice& slice : block.slices) {
    if (slice.count == 0 || uint64_t{slice.first} + slice.count > layout.layout.chunk_tokens)
      return;
    // Of a chunk without a record only this is known: that it has so many tokens at least.
    const ChunkIndex chunk = state_->catalog.FindOrCreate(
        slice.chunk, kNoChunk, session->tenant, session->layout, slice.first + slice.count);
    ChunkEntry& entry = state_->catalog[chunk];
    if (!entry.HasData()) {
      entry.missing_reason = MissingReason::kNotOnDiskAtRestart;
      entry.missing_since_unix_s = static_cast<uint32_t>(state_->UnixSeconds());
    }
    state_->AddSessionRef(chunk, session->pinned);
    session->spans.push_back(
        {chunk, static_cast<uint16_t>(slice.first), static_cast<uint16_t>(slice.count)});
    session->token_count += slice.count;
  }
}

void IndexLoader::OnDamaged(const DamagedRecord& record) {
  ++damaged_;
  spdlog::error("index: damaged record in {} skipped: {}", NameOf(record.family), record.reason);
}

void IndexLoader::Finish(const IndexMeta& meta) {
  state_->mu.AssertHeld();
  state_->next_epoch = std::max<uint64_t>(1, meta.next_epoch);
  state_->next_session = std::max<uint64_t>(1, meta.next_session);
  if (damaged_ > 0) state_->Warn(fmt::format("index: {} damaged records were skipped", damaged_));
  for (ChunkIndex i = 0; i < state_->catalog.end(); ++i) {
    if (!state_->catalog[i].in_use || state_->catalog[i].session_refs > 0) continue;
    state_->AddOperationRef(i);
    state_->DropOperationRef(i);  // forgets it
  }
}

}  // namespace turnkeep
