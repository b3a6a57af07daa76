// What can still be read of an index, without changing a byte of it.
//
// An index that RocksDB opens is read as it is, damaged blocks and records left out. Of one that it
// does not open (CURRENT, MANIFEST or a table lost or damaged) a copy is given to RocksDB's own
// repair, which finds the records of every table and log that is still whole. That may bring back
// what was deleted or replaced shortly before the damage, so what comes out is to be checked
// against the chunks themselves.
//
// Not thread-safe; blocks. The data directory is the caller's (locked).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <absl/status/status.h>

#include "disk_tier/index.h"

namespace turnkeep {

struct SalvagedSession {
  SessionRecord record;
  std::map<uint32_t, std::vector<ChunkSlice>> blocks;  // by index, stale ones among them
};

class SalvagedIndex : public IndexVisitor {
 public:
  void OnTenant(const TenantRecord& record) override { tenants[record.number] = record; }
  void OnLayout(const LayoutRecord& record) override { layouts[record.number] = record; }
  void OnChunk(const ChunkRecord& record) override { chunks.push_back(record); }
  void OnSession(const SessionRecord& record) override { sessions[record.number].record = record; }
  void OnSpanBlock(const SpanBlock& block) override;
  void OnDamaged(const DamagedRecord& record) override;

  std::map<uint16_t, TenantRecord> tenants;
  std::map<uint16_t, LayoutRecord> layouts;
  std::vector<ChunkRecord> chunks;
  std::map<uint64_t, SalvagedSession> sessions;
  std::vector<std::string> damaged;  // why each record or block was left out
  IndexMeta meta;
  // RocksDB's repair was needed, after this error: records of different times may lie together.
  std::string repaired_after;
  std::vector<std::string> lost_files;  // tables that nothing could be read of, and logs
};

// Reads what is left of `index`. `scratch` is a folder that may be made and is removed again.
// FailedPrecondition: the index is another store's, of a newer format, or in use.
absl::Status SalvageIndex(const std::string& index, const StoreId& store_id,
                          const std::string& scratch, SalvagedIndex* salvaged);

}  // namespace turnkeep
