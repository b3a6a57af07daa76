#include "policy_bench.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include <malloc.h>
#include <time.h>

#include "core/status.h"
#include "store/decision_log.h"
#include "store/placement.h"
#include "store/policy.h"

namespace turnkeep::bench {
namespace {

constexpr uint64_t kBatch = 100;
constexpr uint64_t kSlotBytes = 1 << 20;
constexpr int64_t kTurnNs = 300'000'000;

uint64_t HeapBytes() {
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

// Of this thread: what others do on the machine is no part of a decision.
double CpuSeconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class Tier {
 public:
  explicit Tier(EvictionPolicy* policy) : policy_(*policy) {}

  void Fill(uint64_t chunks) {
    for (ChunkIndex chunk = 0; chunk < chunks; ++chunk) {
      if (chunk % kBatch == 0) NextTurn();
      Bring(chunk);
    }
    chunks_ = chunks;
  }

  // A turn of old chunks, and one of new ones in the place of victims; the seconds of the
  // decisions.
  double Batch() {
    NextTurn();
    const auto first = static_cast<ChunkIndex>(random_() % (chunks_ - kBatch));
    for (ChunkIndex chunk = first; chunk < first + kBatch; ++chunk) {
      policy_.Touch(chunk, now_ns_);
      policy_.NoteTurn(chunk, turn_, now_ns_);
      policy_.Expect(chunk, random_() % 2 == 0 ? kNoExpectedUse : now_ns_ + kTurnNs);
    }
    NextTurn();
    std::vector<ChunkIndex> victims;
    const double start = CpuSeconds();
    for (uint64_t i = 0; i < kBatch; ++i) {
      const ChunkIndex victim = policy_.FindVictim([](ChunkIndex) { return true; }, 1);
      policy_.Remove(victim);
      victims.push_back(victim);
    }
    const double seconds = CpuSeconds() - start;
    for (const ChunkIndex victim : victims) Bring(victim);
    return seconds;
  }

 private:
  void NextTurn() {
    now_ns_ += kTurnNs;
    turn_ = {.stop = static_cast<StopReason>(random_() % kStopReasons),
             .number = static_cast<uint32_t>(1 + random_() % 12),
             .context_tokens = 1 + random_() % 65536};
    turn_.new_tokens = 1 + random_() % turn_.context_tokens;
  }
  void Bring(ChunkIndex chunk) {
    policy_.Insert(chunk, kSlotBytes, now_ns_);
    policy_.NoteTurn(chunk, turn_, now_ns_);
  }

  EvictionPolicy& policy_;
  std::mt19937_64 random_{1};
  uint64_t chunks_ = 0;
  int64_t now_ns_ = 1;
  TurnInfo turn_;
};

// A host tier that is full, above a disk that holds all of it.
class PlacedTier {
 public:
  PlacedTier(std::unique_ptr<EvictionPolicy> host, std::unique_ptr<EvictionPolicy> disk,
             uint64_t chunks)
      : chunks_(chunks),
        placement_({.host_capacity_bytes = chunks * kSlotBytes,
                    .disk_capacity_bytes = 2 * chunks * kSlotBytes,
                    .high_watermark = 1,
                    .low_watermark = 1,
                    .write_through = true},
                   std::move(host), std::move(disk)) {}

  void Fill() {
    for (ChunkIndex chunk = 0; chunk < chunks_; ++chunk) {
      if (chunk % kBatch == 0) now_ns_ += kTurnNs;
      Send({.kind = Kind::kHostReserved, .bytes = kSlotBytes});
      Bring(chunk);
    }
    gone_.reserve(kBatch);
  }

  // As Tier::Batch.
  double Batch() {
    now_ns_ += kTurnNs;
    const auto first = static_cast<ChunkIndex>(random_() % (chunks_ - kBatch));
    const TurnInfo turn = NextTurn();
    for (ChunkIndex chunk = first; chunk < first + kBatch; ++chunk) {
      Send({.kind = Kind::kTouched, .chunk = chunk});
      Send({.kind = Kind::kTurnEnded, .chunk = chunk, .turn = turn});
    }
    now_ns_ += kTurnNs;
    gone_.clear();
    const double start = CpuSeconds();
    for (uint64_t i = 0; i < kBatch; ++i) Send({.kind = Kind::kHostReserved, .bytes = kSlotBytes});
    const double seconds = CpuSeconds() - start;
    // The victims come back from disk.
    const std::vector<ChunkIndex> back = gone_;
    for (const ChunkIndex chunk : back) Bring(chunk);
    return seconds;
  }

 private:
  using Kind = PlacementEvent::Kind;

  TurnInfo NextTurn() {
    TurnInfo turn = {.stop = static_cast<StopReason>(random_() % kStopReasons),
                     .number = static_cast<uint32_t>(1 + random_() % 12),
                     .context_tokens = 1 + random_() % 65536};
    turn.new_tokens = 1 + random_() % turn.context_tokens;
    return turn;
  }

  void Bring(ChunkIndex chunk) {
    Send({.kind = Kind::kHostFilled, .chunk = chunk, .bytes = kSlotBytes});
    Send({.kind = Kind::kTurnEnded, .chunk = chunk, .turn = NextTurn()});
  }

  void Send(PlacementEvent event) {
    event.now_ns = now_ns_;
    actions_.clear();
    placement_.Handle(event, &actions_);
    for (size_t i = 0; i < actions_.size(); ++i) {
      const PlacementAction action = actions_[i];
      if (action.kind == PlacementAction::Kind::kWriteToDisk) {
        placement_.Handle({.kind = Kind::kDiskWritten, .chunk = action.chunk, .now_ns = now_ns_},
                          &actions_);
        continue;
      }
      // Its id, as evenly spread as a digest is.
      ChunkId id;
      const uint64_t number = (action.chunk + 1) * 0x9E3779B97F4A7C15u;
      std::memcpy(id.bytes.data(), &number, sizeof(number));
      log_.Add({.now_ns = now_ns_, .chunk = id, .slot_bytes = kSlotBytes, .action = action});
      gone_.push_back(action.chunk);
    }
  }

  const uint64_t chunks_;
  Placement placement_;
  DecisionLog log_;
  std::mt19937_64 random_{1};
  std::vector<PlacementAction> actions_;
  std::vector<ChunkIndex> gone_;
  int64_t now_ns_ = 1;
};

struct Times {
  double mean = 0, p50 = 0, p99 = 0;
};

// ns a decision, of batches.
template <typename Measured>
Times TimesOf(Measured& tier, uint64_t decisions) {
  std::vector<double> batches;
  for (uint64_t done = 0; done < decisions; done += kBatch) {
    batches.push_back(tier.Batch() * 1e9 / kBatch);
  }
  Times times;
  for (const double ns : batches) times.mean += ns / static_cast<double>(batches.size());
  std::sort(batches.begin(), batches.end());
  times.p50 = batches[batches.size() / 2];
  times.p99 = batches[batches.size() * 99 / 100];
  return times;
}

double PerChunk(uint64_t heap_bytes, uint64_t chunks) {
  return static_cast<double>(heap_bytes) / static_cast<double>(chunks);
}

}  // namespace

absl::StatusOr<std::vector<PolicyRow>> MeasurePolicies(const PolicyBenchOptions& options) {
  std::vector<PolicyRow> rows;
  for (const std::string_view name : PolicyNames()) {
    PolicyRow row{.policy = std::string(name)};
    {
      const uint64_t before = HeapBytes();
      TK_ASSIGN_OR_RETURN(const auto policy, MakePolicy(name));
      Tier tier(policy.get());
      tier.Fill(options.chunks);
      row.bytes_per_chunk = PerChunk(HeapBytes() - before, options.chunks);
      const Times times = TimesOf(tier, options.decisions);
      row.decision_ns = times.mean;
      row.decision_ns_p50 = times.p50;
      row.decision_ns_p99 = times.p99;
    }
    const uint64_t before = HeapBytes();
    TK_ASSIGN_OR_RETURN(auto host, MakePolicy(name));
    TK_ASSIGN_OR_RETURN(auto disk, MakePolicy(name));
    PlacedTier tier(std::move(host), std::move(disk), options.chunks);
    tier.Fill();
    row.placement_bytes_per_chunk = PerChunk(HeapBytes() - before, options.chunks);
    const Times times = TimesOf(tier, options.decisions);
    row.placement_ns = times.mean;
    row.placement_ns_p50 = times.p50;
    row.placement_ns_p99 = times.p99;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace turnkeep::bench
