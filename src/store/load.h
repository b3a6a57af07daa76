// Reopening: the index's records become the catalog and the sessions.
#pragma once

#include <cstdint>
#include <utility>

#include "disk_tier/index.h"
#include "disk_tier/index_batch.h"
#include "store/state.h"

namespace turnkeep {

// Receives the records in the index's order (tenants, layouts, chunks, sessions, span
// blocks) while the store's lock is held by the one who loads.
class IndexLoader : public IndexVisitor {
 public:
  explicit IndexLoader(StoreState* state) : state_(state) {}

  void OnTenant(const TenantRecord& record) override;
  void OnLayout(const LayoutRecord& record) override;
  void OnChunk(const ChunkRecord& record) override;
  void OnSession(const SessionRecord& record) override;
  void OnSpanBlock(const SpanBlock& block) override;
  void OnDamaged(const DamagedRecord& record) override;

  // After the last record: takes over the counters, and forgets chunks that no session
  // refers to (a crash between a session's end and its chunks').
  void Finish(const IndexMeta& meta);

  // Deletes the records of sessions that a later one of the same name replaced.
  IndexBatch TakeSuperseded() { return std::move(superseded_); }

 private:
  StoreState* const state_;
  IndexBatch superseded_;
  uint64_t damaged_ = 0;
};

}  // namespace turnkeep
