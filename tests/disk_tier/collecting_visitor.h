// An IndexVisitor that keeps what it sees, and chunk records to put into an index.
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "disk_tier/index.h"

namespace turnkeep::testing {

struct CollectingVisitor : IndexVisitor {
  void OnTenant(const TenantRecord& record) override { tenants.push_back(record); }
  void OnLayout(const LayoutRecord& record) override { layouts.push_back(record); }
  void OnChunk(const ChunkRecord& record) override { chunks[record.id] = record; }
  void OnSession(const SessionRecord& record) override { sessions.push_back(record); }
  void OnSpanBlock(const SpanBlock& block) override { blocks.push_back(block); }
  void OnDamaged(const DamagedRecord& record) override { damaged.push_back(record); }

  std::vector<TenantRecord> tenants;
  std::vector<LayoutRecord> layouts;
  std::map<ChunkId, ChunkRecord> chunks;
  std::vector<SessionRecord> sessions;
  std::vector<SpanBlock> blocks;
  std::vector<DamagedRecord> damaged;
  IndexMeta meta;  // for the caller of Load to fill in
};

// A chunk record that is a function of `number` (its epoch, too); ids look random.
inline ChunkRecord TestChunk(uint64_t number) {
  ChunkRecord record{.layout = 1,
                     .tenant = 1,
                     .token_count = 64,
                     .position_base = number * 64,
                     .epoch = number,
                     .root = {number, ~number},
                     .extent = {1, static_cast<uint32_t>(number)},
                     .slot_blocks = 4};
  uint64_t x = number;
  for (size_t i = 0; i < 4; ++i) {
    x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15u + 0x1234567;
    std::memcpy(record.id.bytes.data() + 8 * i, &x, sizeof(x));
  }
  return record;
}

}  // namespace turnkeep::testing
