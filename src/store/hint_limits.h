// What a hint speaks of, and bounds of what hints may make the store remember. Internal to
// src/store.
#pragma once

#include <cstddef>
#include <cstdint>

#include <vector>

#include <absl/time/time.h>

#include "store/policy.h"

namespace turnkeep {

// What is stored of a hint's target.
struct HintedChunks {
  std::vector<ChunkIndex> chunks;     // of the leading tokens that are stored, each once
  std::vector<ChunkIndex> backwards;  // the same, from the last to the first
  bool tail = false;                  // the last is partly filled
  TurnInfo turn;                      // the session's last, as far as it is known
  uint64_t asked_tokens = 0;
  uint64_t stored_tokens = 0;
  uint64_t disk_bytes = 0;  // only on disk
};

// An expectation that nobody fulfils is forgotten this long after its time: its engine is gone.
inline constexpr int64_t kHintGraceNs = 600 * int64_t{1'000'000'000};
// Later than this counts as this.
inline constexpr absl::Duration kFurthestHint = absl::Hours(24 * 30);
// Sessions and prefixes that are expected, and chunks of all of them; the same of what is retained.
// Of these a tenant may have an even share, so that no tenant's hints leave no room for another's.
// (Who had more before another tenant came keeps it until it is fulfilled or forgotten: n tenants
// have less than 1 + ln n times as much.)
inline constexpr size_t kMaxExpectations = 65536;
inline constexpr uint64_t kMaxExpectedChunks = uint64_t{1} << 22;
// Places in a waiting queue are told as times so far apart.
inline constexpr int64_t kPlaceNs = 1000;

}  // namespace turnkeep
