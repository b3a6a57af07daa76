// Eviction policy of one tier: an order over chunks. Pure: no clock, no lock, no I/O.
//
// A policy only orders. What may not be evicted (pins, running I/O) is the placement's
// business, which skips it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include <absl/status/statusor.h>

namespace turnkeep {

using ChunkIndex = uint32_t;
inline constexpr ChunkIndex kNoChunk = 0xFFFFFFFFu;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;

  // A chunk enters the tier, is used, or leaves. Insert of a member and Remove of a
  // non-member are bugs; Touch of a non-member is ignored.
  virtual void Insert(ChunkIndex chunk, int64_t now_ns) = 0;
  virtual void Touch(ChunkIndex chunk, int64_t now_ns) = 0;
  virtual void Remove(ChunkIndex chunk) = 0;

  // Shows candidates in eviction order, at most `limit`, until `accept` takes one, which
  // is returned (and stays a member); kNoChunk if none was taken.
  virtual ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) = 0;
};

// "lru". InvalidArgument lists the names there are.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name);

}  // namespace turnkeep
