// The long lists of a plan, as they lie on the wire: fixed-size little-endian structs,
// copied whole. A 100,000-token session has 1,600 of them.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include <absl/status/statusor.h>

#include "core/digest.h"
#include "core/ids.h"
#include "core/status.h"

namespace turnkeep::wire {

// Where one chunk's image lies: `slot_offset` bytes into segment `segment`. Both are 0
// on a connection without shared memory.
struct SaveEntry {
  uint8_t chunk[32];
  uint64_t epoch;
  uint64_t token_begin;
  uint64_t slot_offset;
  uint32_t segment;
  uint32_t token_count;
};
static_assert(sizeof(SaveEntry) == 64);

struct RestoreEntry {
  uint8_t chunk[32];
  uint64_t root_low;
  uint64_t root_high;
  uint64_t epoch;
  uint64_t token_begin;
  uint64_t stored_position;
  uint64_t slot_offset;
  uint32_t segment;
  uint32_t token_count;
  uint32_t first_in_chunk;
  uint32_t chunk_token_count;
  uint32_t tier;
  uint32_t reserved;  // 0
};
static_assert(sizeof(RestoreEntry) == 104);
static_assert(std::is_trivially_copyable_v<SaveEntry> &&
              std::is_trivially_copyable_v<RestoreEntry>);

// A chunk in an engine's page pool.
struct GpuEntry {
  uint8_t chunk[32];
  uint64_t bytes;
};
static_assert(sizeof(GpuEntry) == 40 && std::is_trivially_copyable_v<GpuEntry>);

template <typename Entry>
std::span<const std::byte> AsBytes(const std::vector<Entry>& entries) {
  return std::as_bytes(std::span<const Entry>(entries));
}

// InvalidArgument unless `raw` is exactly `count` entries.
template <typename Entry>
absl::Status CheckEntries(std::span<const std::byte> raw, uint32_t count) {
  if (raw.size() == uint64_t{count} * sizeof(Entry)) return absl::OkStatus();
  return InvalidArgument("plan: {} raw bytes for {} entries of {} bytes", raw.size(), count,
                         sizeof(Entry));
}

// Entry `index` of checked ones, which may lie unaligned.
template <typename Entry>
Entry EntryAt(std::span<const std::byte> raw, size_t index) {
  Entry entry;
  std::memcpy(&entry, raw.data() + index * sizeof(Entry), sizeof(Entry));
  return entry;
}

template <typename Entry>
absl::StatusOr<std::vector<Entry>> ParseEntries(std::span<const std::byte> raw, uint32_t count) {
  TK_RETURN_IF_ERROR(CheckEntries<Entry>(raw, count));
  std::vector<Entry> entries(count);
  if (count != 0) std::memcpy(entries.data(), raw.data(), raw.size());
  return entries;
}

}  // namespace turnkeep::wire
