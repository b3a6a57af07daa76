#include "cache.h"

#include <algorithm>

#include "core/status.h"
#include "store/chunk_array.h"

namespace turnkeep::replay {

using Kind = PlacementEvent::Kind;

namespace {

// The daemon's are ten times as frequent; prefetches also begin when a turn or a read ends.
constexpr int64_t kTickNs = 1'000'000'000;
// Asked for at once, at most: a restore that comes waits for these, a hundredth of a second.
constexpr double kInFlightSeconds = 0.01;

// From the last block before `end` to the first.
template <typename Visit>
void EachBackwards(std::span<const BlockRun> runs, uint64_t end, const Visit& visit) {
  uint64_t begin = 0;
  for (const BlockRun& run : runs) begin += run.count;
  for (size_t i = runs.size(); i-- > 0;) {
    begin -= runs[i].count;
    for (uint32_t j = runs[i].count; j-- > 0;) {
      if (begin + j < end) visit(runs[i].first + j);
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cache>> Cache::Create(const CacheOptions& options) {
  std::unique_ptr<Cache> cache(new Cache(options));
  cache->first_come_ = options.whole_sessions && options.policy == "fifo";
  // Belady's policy goes by an order that it is told.
  const std::string policy = cache->first_come_ ? "belady" : options.policy;
  TK_ASSIGN_OR_RETURN(auto host, MakePolicy(policy));
  TK_ASSIGN_OR_RETURN(auto disk, MakePolicy(policy));
  PlacementOptions placement;
  placement.host_capacity_bytes = options.host_bytes;
  placement.disk_capacity_bytes = options.disk_bytes;
  placement.high_watermark = options.high_watermark;
  placement.low_watermark = options.low_watermark;
  placement.write_through = options.write_through;
  placement.prefetch_bytes = options.prefetch_bytes;
  placement.prefetch_in_flight_bytes =
      static_cast<uint64_t>(options.disk_bytes_per_s * kInFlightSeconds);
  cache->learns_ = options.policy == "next_use";
  cache->placement_ = std::make_unique<Placement>(placement, std::move(host), std::move(disk));
  return cache;
}

Found Cache::Find(std::span<const BlockRun> runs) const {
  Found found;
  for (const BlockRun& run : runs) {
    for (uint32_t block = run.first; block < run.first + run.count; ++block) {
      if (placement_->InHost(block)) {
        ++found.host_blocks;
      } else if (placement_->OnDisk(block)) {
        ++found.disk_blocks;
      } else {
        return found;
      }
    }
  }
  return found;
}

void Cache::Handle(Kind kind, uint32_t block, uint64_t bytes, int64_t now_ns) {
  placement_->Handle({.kind = kind, .chunk = block, .bytes = bytes, .now_ns = now_ns}, &actions_);
  if (!actions_.empty()) Run(now_ns);
}

// Does what the placement asked for. An answer may ask for more.
void Cache::Run(int64_t now_ns) {
  for (size_t i = 0; i < actions_.size(); ++i) {
    const PlacementAction action = actions_[i];
    switch (action.kind) {
      case PlacementAction::Kind::kWriteToDisk:
        disk_written_bytes_ += bytes_of_[action.chunk];
        placement_->Handle({.kind = Kind::kDiskWritten, .chunk = action.chunk, .now_ns = now_ns},
                           &actions_);
        break;
      case PlacementAction::Kind::kPrefetch:
        ReadFromDisk(action.chunk, bytes_of_[action.chunk], now_ns);
        break;
      case PlacementAction::Kind::kCancelPrefetch:
        break;
      case PlacementAction::Kind::kEvictHost:
      case PlacementAction::Kind::kEvictDisk:
        if (!placement_->InHost(action.chunk) && !placement_->OnDisk(action.chunk)) {
          ++evicted_blocks_;
        }
        break;
    }
  }
  actions_.clear();
}

void Cache::ReadFromDisk(uint32_t block, uint64_t bytes, int64_t now_ns) {
  const double seconds = static_cast<double>(bytes) / options_.disk_bytes_per_s;
  disk_free_ns_ = std::max(disk_free_ns_, now_ns) + static_cast<int64_t>(seconds * 1e9);
  readings_.push_back({disk_free_ns_, block});
}

void Cache::AdvanceTo(int64_t now_ns) {
  now_ns_ = now_ns;
  if (options_.prefetch_bytes == 0) return;
  if (next_tick_ns_ == 0) next_tick_ns_ = now_ns;
  for (;;) {
    if (!readings_.empty() && readings_.front().end_ns <= std::min(now_ns, next_tick_ns_)) {
      const Reading reading = readings_.front();
      readings_.pop_front();
      if (reading.block == kNone) {
        Handle(Kind::kDiskReadsEnd, kNone, 0, reading.end_ns);
      } else {
        Handle(Kind::kHostFilled, reading.block, bytes_of_[reading.block], reading.end_ns);
      }
    } else if (next_tick_ns_ <= now_ns) {
      Handle(Kind::kTick, kNone, 0, next_tick_ns_);
      next_tick_ns_ += kTickNs;
    } else {
      return;
    }
  }
}

// What a restore reads keeps prefetches from beginning until it has ended.
void Cache::RestoreFromDisk(std::span<const BlockRun> runs, int64_t now_ns) {
  const uint64_t bytes = DiskOnlyBytes(runs);
  if (options_.prefetch_bytes == 0 || bytes == 0) return;
  Handle(Kind::kDiskReadsBegin, kNone, 0, now_ns);
  ReadFromDisk(kNone, bytes, now_ns);
}

void Cache::Bring(uint32_t block, uint64_t bytes, int64_t now_ns) {
  AtChunk(bytes_of_, block) = bytes;
  if (placement_->Prefetching(block)) {
    // Joined: its slot is reserved, and its end is here.
    std::erase_if(readings_, [&](const Reading& reading) { return reading.block == block; });
  } else {
    Handle(Kind::kHostReserved, block, bytes, now_ns);
  }
  Handle(Kind::kHostFilled, block, bytes, now_ns);
  if (options_.host_bytes < bytes) Handle(Kind::kHostSpaceNeeded, block, bytes, now_ns);
}

// The first that came is told as the furthest; places are exact in a double.
void Cache::GivePlaces(std::span<const BlockRun> runs) {
  constexpr int64_t kFirstPlace = int64_t{1} << 50;
  EachBackwards(runs, UINT64_MAX, [&](uint32_t block) {
    if (block >= came_.size()) came_.resize(block + 1 + block / 2);
    if (came_[block]) return;
    came_[block] = true;
    const int64_t place = kFirstPlace - came_count_++;
    placement_->Handle({.kind = Kind::kExpected, .chunk = block, .next_use = place}, &actions_);
  });
}

void Cache::Use(std::span<const BlockRun> runs, uint32_t found, uint64_t block_bytes,
                const TurnInfo& turn, int64_t now_ns) {
  if (first_come_) GivePlaces(runs);
  RestoreFromDisk(runs, now_ns);
  // What was found must not make room for what was not: used first, so that it is newer,
  // and once more after it, so that parents stay newer than children. Who learns from turns is
  // told of all blocks before any has to go for them.
  TurnInfo info = turn;
  info.is_use = true;
  EachBackwards(runs, learns_ ? UINT64_MAX : found, [&](uint32_t block) {
    if (!learns_) return Handle(Kind::kTouched, block, block_bytes, now_ns);
    placement_->Handle({.kind = Kind::kTurnEnded, .chunk = block, .now_ns = now_ns, .turn = info},
                       &actions_);
    info.tail = false;
    info.next = block;
  });
  bool all_in_host = true;
  EachBackwards(runs, UINT64_MAX,
                [&](uint32_t block) { all_in_host = all_in_host && placement_->InHost(block); });
  if (all_in_host) return;
  EachBackwards(runs, UINT64_MAX, [&](uint32_t block) {
    if (placement_->InHost(block)) {
      Handle(Kind::kTouched, block, block_bytes, 0);
    } else {
      Bring(block, block_bytes, now_ns);
    }
  });
}

void Cache::EndTurn(std::span<const BlockRun> runs, const TurnInfo& turn, int64_t now_ns) {
  if (!learns_) return;
  TurnInfo info = turn;
  EachBackwards(runs, UINT64_MAX, [&](uint32_t block) {
    placement_->Handle({.kind = Kind::kTurnEnded, .chunk = block, .now_ns = now_ns, .turn = info},
                       &actions_);
    info.tail = false;
    info.next = block;
  });
  if (options_.prefetch_bytes > 0) Handle(Kind::kTick, kNone, 0, now_ns);
}

void Cache::Expect(const BlockRun& run, int64_t next_use) {
  if (first_come_) return;
  for (uint32_t block = run.first; block < run.first + run.count; ++block) {
    placement_->Handle({.kind = Kind::kExpected, .chunk = block, .next_use = next_use}, &actions_);
  }
  Run(now_ns_);
}

uint64_t Cache::DiskOnlyBytes(std::span<const BlockRun> runs) const {
  uint64_t bytes = 0;
  for (const BlockRun& run : runs) {
    for (uint32_t block = run.first; block < run.first + run.count; ++block) {
      if (placement_->InHost(block)) continue;
      if (!placement_->OnDisk(block)) return bytes;
      bytes += bytes_of_[block];
    }
  }
  return bytes;
}

uint32_t Cache::Promote(std::span<const BlockRun> runs, int64_t now_ns) {
  uint32_t promoted = 0;
  for (const BlockRun& run : runs) {
    for (uint32_t block = run.first; block < run.first + run.count; ++block) {
      if (placement_->InHost(block)) continue;
      if (!placement_->OnDisk(block)) return promoted;
      Bring(block, bytes_of_[block], now_ns);
      ++promoted;
    }
  }
  return promoted;
}

void Cache::Forget(uint32_t block, int64_t now_ns) {
  Handle(Kind::kHostLost, block, 0, now_ns);
  Handle(Kind::kDiskLost, block, 0, now_ns);
}

}  // namespace turnkeep::replay
