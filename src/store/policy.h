// Eviction policy of one tier: an order over chunks. Pure: no clock, no lock, no I/O; the same
// calls give the same order.
//
// A policy only orders. What may not be evicted (pins, running I/O) is the placement's
// business, which skips it.
//
//   lru         the least recently used first
//   fifo        the first in goes first
//   s3_fifo     a small queue for newcomers, a main queue for what was used again, and a ghost of
//   what
//               left the small one (Yang et al., SOSP 2023)
//   gdsf        the lowest clock + uses ÷ bytes first (Cherkasova, HPL-98-69R1)
//   look_ahead  what no waiting job needs first, then the furthest in the queue (CachedAttention,
//               section 3.3.2)
//   next_use    the least likely to be used within the time that chunks stay, learned online
//   belady      the furthest next use first, which somebody who knows the future tells (replay)
//
// docs/policies.md explains each.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "core/hint.h"

namespace turnkeep {

using ChunkIndex = uint32_t;
inline constexpr ChunkIndex kNoChunk = 0xFFFFFFFFu;

// Nobody is known to want the chunk.
inline constexpr int64_t kNoExpectedUse = std::numeric_limits<int64_t>::max();

// The turn that used a chunk last.
struct TurnInfo {
  static constexpr uint64_t kUnknownTokens = std::numeric_limits<uint64_t>::max();

  StopReason stop = StopReason::kUnknown;
  uint32_t number = 0;                      // of the session's turns, from 1; 0: not known
  uint64_t context_tokens = 0;              // that it had; 0: not known
  uint64_t new_tokens = kUnknownTokens;     // of these, that no turn had before
  uint64_t answer_tokens = kUnknownTokens;  // that the turn has made
  uint32_t tenant = 0;                      // its number
  // NoteTurn tells of the use itself: no Touch comes beside it. Else the turn has ended just now,
  // and the time to the next use counts from here.
  bool is_use = false;
  bool running = false;  // is_use: the turn goes on, and its end is told later
  // is_use: if a turn that uses the chunk is running, this is that one (a save, after the restore
  // of its session), and no second use.
  bool goes_on = false;
  bool tail = false;  // the chunk is a partly filled last one, which the next turn replaces
  ChunkIndex next = kNoChunk;  // that follows this one in the turn's prompt; kNoChunk: not known
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;

  // A chunk of slot `bytes` enters the tier, is used, or leaves. Insert of a member and Remove of a
  // non-member are bugs; Touch of a non-member is ignored. A Touch at time 0 is no use: the chunk
  // was shown and may not go, and only moves behind the others.
  virtual void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) = 0;
  virtual void Touch(ChunkIndex chunk, int64_t now_ns) = 0;
  virtual void Remove(ChunkIndex chunk) = 0;
  // The index of a chunk that is no member will mean another one: nothing is concluded for that
  // from what this one did.
  virtual void Forget(ChunkIndex /*chunk*/) {}

  // The soonest known use of a chunk, member or not: a time, or a place in the queue; what orders
  // them is one or the other for all chunks. kNoExpectedUse takes it back. Ignored by policies that
  // do not look ahead.
  virtual void Expect(ChunkIndex /*chunk*/, int64_t /*next_use*/) {}
  // Which turn uses the chunk, or used it last, and how it ended. To policies that do not learn a
  // use is a use, and an end nothing.
  virtual void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) {
    if (turn.is_use) Touch(chunk, now_ns);
  }

  // Prediction, by next_use. A chunk that is no member may be read from the tier below, or not any
  // more. Idempotent.
  virtual void SetBelow(ChunkIndex /*chunk*/, bool /*below*/) {}
  // Shows those, the likeliest to be used soon first, at most `limit`, until `accept` takes one;
  // kNoChunk if none was taken or the policy does not predict.
  virtual ChunkIndex FindNearest(const std::function<bool(ChunkIndex)>& /*accept*/,
                                 uint32_t /*limit*/, int64_t /*now_ns*/) {
    return kNoChunk;
  }
  // The uses a second that keeping the chunk is expected to give, by which FindNearest and
  // FindVictim order; as of the last of these calls. 0 by policies that do not predict.
  virtual double Worth(ChunkIndex /*chunk*/) const { return 0; }

  // Shows candidates in eviction order, at most `limit`, until `accept` takes one, which
  // is returned (and stays a member); kNoChunk if none was taken.
  virtual ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) = 0;
};

// InvalidArgument lists the names there are.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name);
std::vector<std::string_view> PolicyNames();

}  // namespace turnkeep
