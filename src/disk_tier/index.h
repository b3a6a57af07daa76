// Index: what is durable about chunks, sessions, tenants and layouts. Never payload.
//
// Written behind the catalog (which is in memory) and read once, at start. Batches are
// applied in the order of Apply, on the index's own thread; those that wait together become one
// write and, if one of them asks for it, one sync.
//
// Thread-safe. RocksIndex is the implementation; FaultIndex (disk_tier/testing) wraps one.
//
//   IndexBatch batch;
//   batch.PutChunk(record);
//   TK_RETURN_IF_ERROR(index->Apply(std::move(batch), SyncMode::kSync,
//                                   [](const absl::Status& status) {...}));
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <absl/functional/any_invocable.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/units.h"
#include "disk_tier/extent_ref.h"
#include "disk_tier/index_batch.h"
#include "disk_tier/index_record.h"

namespace turnkeep {

// Batches accepted and not yet applied, and their bytes.
inline constexpr uint32_t kMaxQueuedIndexBatches = 1u << 14;
inline constexpr uint64_t kMaxQueuedIndexBytes = 64 * kMiB;

enum class SyncMode : uint8_t {
  kNoSync = 1,  // survives the process, not the machine
  kSync,        // durable when `done` runs
};

using IndexDone = absl::AnyInvocable<void(const absl::Status&)>;

// What Load found in the meta family.
struct IndexMeta {
  StoreId store_id{};
  uint64_t next_epoch = 1;    // at least one past every chunk record's epoch
  uint64_t next_session = 1;  // at least one past every session's number
  uint32_t next_file = 1;     // at least one past every file a chunk record ever named
  bool clean_shutdown = false;
  uint64_t damaged_records = 0;
};

struct DamagedRecord {
  IndexFamily family = IndexFamily::kMeta;
  std::string key;  // as stored
  std::string reason;
};

// Receives the whole index; called on the loading thread.
class IndexVisitor {
 public:
  virtual ~IndexVisitor() = default;
  virtual void OnTenant(const TenantRecord& record) = 0;
  virtual void OnLayout(const LayoutRecord& record) = 0;
  virtual void OnChunk(const ChunkRecord& record) = 0;
  virtual void OnSession(const SessionRecord& record) = 0;
  virtual void OnSpanBlock(const SpanBlock& block) = 0;
  virtual void OnDamaged(const DamagedRecord& record) = 0;
};

struct IndexStats {
  uint64_t batches = 0;
  uint64_t groups = 0;  // writes that the batches became
  uint64_t syncs = 0;
  uint64_t bytes = 0;  // keys and values
  uint64_t errors = 0;
  uint32_t queued_batches = 0;
  uint64_t memory_bytes = 0;  // memtables, block cache and table readers, as the library reports
};

class Index {
 public:
  // Applies what was accepted, then closes. Every `done` has run when it returns.
  virtual ~Index() = default;

  // Whether the last user of the index ended with SetCleanShutdown(true).
  virtual bool FoundCleanShutdown() const = 0;
  // As in IndexMeta, as far as the meta record knows; later Loads may find higher.
  virtual uint32_t NextFile() const = 0;

  // Streams every record in the order tenants, layouts, chunks, sessions, span blocks (of
  // one session together, ascending). A damaged record is reported, counted and skipped.
  // May be called again; not at the same time as Apply. Blocks.
  virtual absl::StatusOr<IndexMeta> Load(IndexVisitor& visitor) = 0;

  // OK: `done` runs once, on the index's thread, when the batch is applied (and durable,
  // if asked) or has failed; it may call Apply and must not block. ResourceExhausted: the
  // queue is full, and `done` never runs. A batch that failed may still be found at the
  // next start (its bytes may have reached the log); it is never found in part.
  virtual absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) = 0;

  // Blocks until everything accepted so far is applied and durable.
  virtual absl::Status Flush() = 0;

  virtual IndexStats Stats() const = 0;
};

// Apply, waited for. Never on the index's thread.
absl::Status ApplyBlocking(Index& index, IndexBatch batch, SyncMode sync);

}  // namespace turnkeep
