#include "policy_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>

#include <malloc.h>

#include "core/status.h"
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
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t i = 0; i < kBatch; ++i) {
      const ChunkIndex victim = policy_.FindVictim([](ChunkIndex) { return true; }, 1);
      policy_.Remove(victim);
      victims.push_back(victim);
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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

}  // namespace

absl::StatusOr<std::vector<PolicyRow>> MeasurePolicies(const PolicyBenchOptions& options) {
  std::vector<PolicyRow> rows;
  for (const std::string_view name : PolicyNames()) {
    const uint64_t before = HeapBytes();
    TK_ASSIGN_OR_RETURN(const auto policy, MakePolicy(name));
    Tier tier(policy.get());
    tier.Fill(options.chunks);
    PolicyRow row{.policy = std::string(name)};
    row.bytes_per_chunk =
        static_cast<double>(HeapBytes() - before) / static_cast<double>(options.chunks);
    std::vector<double> batches;
    for (uint64_t done = 0; done < options.decisions; done += kBatch) {
      batches.push_back(tier.Batch() * 1e9 / kBatch);
    }
    for (const double ns : batches) row.decision_ns += ns / static_cast<double>(batches.size());
    std::sort(batches.begin(), batches.end());
    row.decision_ns_p50 = batches[batches.size() / 2];
    row.decision_ns_p99 = batches[batches.size() * 99 / 100];
    rows.push_back(row);
  }
  return rows;
}

}  // namespace turnkeep::bench
