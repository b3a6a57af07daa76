// next_use: evicts what gives the fewest uses for the time that it is expected to stay, learned
// online.
//
// Chunks are in classes by what is known of their last use: how the turn ended, its number in the
// session, how long its context was and how much of that was new, and how long before that the
// chunk had been used. Tails, which the next turn replaces, are a class of their own, and so is
// what a turn has left behind that went back into the prompt before it and on from there. For every
// class the policy learns, of a sample of the chunks, how often a chunk that has not been used for
// a given age is used in the next stretch of time (use_hazards.h); old experience fades.
//
// A chunk of age a in class c is worth the best rate of uses that keeping it can give,
// max over horizons t of P(use before t | a) / E[min(time to use, t) | a], the index of a stopping
// problem (Gittins 1979). In a class the least recently used stands for all, and of these the
// least worth goes. A newcomer of a class that is worth less than all that is kept is the
// first to go itself, so that what is used once passes through without doing harm.
//
// Samples are taken by chunk, those of a hash below a threshold that falls as they become many
// (Waldspurger et al. 2015), so that memory and work are bounded however long chunks
// live. Chunks that left the tier go on being observed as long as their index means the same
// chunk, so that what is learned does not depend on what was kept. 32 bytes a chunk.
//
// Thread-compatible.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <string_view>
#include <vector>

#include "store/chunk_list.h"
#include "store/policy.h"
#include "store/use_hazards.h"

namespace turnkeep {

class NextUsePolicy final : public EvictionPolicy {
 public:
  NextUsePolicy();
  std::string_view name() const override { return "next_use"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  void Forget(ChunkIndex chunk) override;
  void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) override;
  void SetBelow(ChunkIndex chunk, bool below) override;
  ChunkIndex FindNearest(const std::function<bool(ChunkIndex)>& accept, uint32_t limit,
                         int64_t now_ns) override;
  double Worth(ChunkIndex chunk) const override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

  // The learned probability that a chunk that such a turn used, `gap_s` after the use before (0:
  // there was none) and `age_s` ago, is used within the next `horizon_s`. For tests and
  // explanations.
  double UseProbability(const TurnInfo& turn, double gap_s, double age_s, double horizon_s) const;

 private:
  // Classes: by the turn and by the chunk's last gap, and the tails.
  static constexpr uint32_t kTurns = 3;   // first or not known, to the fourth, later
  static constexpr uint32_t kShares = 3;  // new tokens: more than half or not known, than 1/8, less
  static constexpr uint32_t kContexts = 3;  // below 2 Ki tokens or not known, below 16 Ki, longer
  static constexpr uint32_t kTurnClasses = kTurns * kShares * kContexts * kStopReasons;
  static constexpr uint32_t kGaps = 5;  // none, below 15 s, a minute, four minutes, longer
  static constexpr uint32_t kTailClass = kTurnClasses * kGaps;
  static constexpr uint32_t kLeftClass = kTailClass + 1;  // at a first fork; then at a second
  static constexpr uint8_t kMaxForks = 2;                 // that leave something behind
  static constexpr uint32_t kClasses = kLeftClass + kMaxForks;
  static constexpr uint32_t kAges = UseHazards::kAges;

  struct State {
    int64_t last_use_ns = kNever;
    uint16_t turn_class = 0;  // kTurnClasses: a tail
    uint16_t use_class = 0;
    uint16_t below = kNotBelow;  // its bucket of below_
    uint8_t gap = 0;
    bool running = false;        // a turn uses it, and its end will be told
    ChunkIndex next = kNoChunk;  // that the last turn through this one went on to, if it was told
    uint8_t forks = 0;  // turns that went on to another than the one before, at most kMaxForks
    uint8_t left = 0;   // since its last use left behind, at a fork of this number
  };
  static_assert(sizeof(State) == 24);
  static constexpr uint16_t kNotBelow = 0xFFFF;
  static constexpr uint32_t kBuckets = kClasses * kAges;  // by class and age
  static_assert(kBuckets < kNotBelow);
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
  struct Sample {
    ChunkIndex chunk;
    int64_t time_ns;
  };

  static uint32_t TurnClassOf(const TurnInfo& turn);
  static uint32_t GapOf(double gap_s);
  static uint32_t ClassOf(const State& state);
  void SetClass(ChunkIndex chunk, State& state);
  State& At(ChunkIndex chunk);
  void Use(ChunkIndex chunk, State& state, int64_t now_ns);
  void GoOn(State& state, ChunkIndex next, int64_t now_ns);
  void LeaveBehind(ChunkIndex first, uint8_t fork);
  void Observe(ChunkIndex chunk, State& state, int64_t now_ns, bool sample);
  void Restart(ChunkIndex chunk, State& state, int64_t now_ns);
  void AdvanceTo(int64_t now_ns);
  bool Sampled(ChunkIndex chunk) const;
  void TakeSample(ChunkIndex chunk, int64_t now_ns);
  void AdvanceSamples();
  void ThinSamples();
  void RefreshValues();
  void RefreshHeads();
  uint16_t BucketOf(const State& state) const;
  void EnterBelow(ChunkIndex chunk, State& state);
  void LeaveBelow(ChunkIndex chunk, State& state);
  void MarkBucket(uint32_t bucket);
  void RankBuckets();
  void AgeBelow();
  void SetHead(uint32_t use_class, ChunkIndex chunk);
  void MarkHead(uint32_t use_class);
  void Push(uint32_t use_class, ChunkIndex chunk);
  void Unlink(uint32_t use_class, ChunkIndex chunk);
  void MoveToNewest(uint32_t use_class, ChunkIndex chunk);
  float ValueOf(uint32_t use_class, ChunkIndex chunk) const;
  double AgeSeconds(const State& state) const;

  ChunkLinks links_;
  std::array<ChunkLinks::List, kClasses> lists_;
  std::vector<State> states_;
  std::vector<ChunkIndex> left_;  // in LeaveBehind
  int64_t now_ns_ = 0;
  bool ends_are_told_ = false;  // of a turn, once

  UseHazards hazards_{kClasses, /*apart_count=*/1 + kMaxForks};
  // By the age that its samples have reached last; oldest first.
  std::array<std::deque<Sample>, kAges> samples_;
  uint64_t sample_count_ = 0;
  uint32_t sample_threshold_ = 0xFFFFFFFFu / 4;  // of the hash
  uint64_t sampled_ = 0;

  std::vector<std::array<float, kAges>> values_;  // uses a second, by class and age
  uint32_t decisions_ = 0;
  // Each class's least recently used, as it was shown last, and what it was worth at heads_ns_;
  // infinity where there is none.
  static constexpr uint32_t kLeaves = 1024;
  static_assert(kClasses <= kLeaves);
  std::array<ChunkIndex, kClasses> heads_;
  std::array<float, kLeaves> head_values_;
  std::array<uint16_t, kLeaves> winners_{};
  std::array<bool, kClasses> marked_{};  // heads that have changed
  std::vector<uint16_t> changed_;
  int64_t heads_ns_ = kNever;

  // Chunks of the tier below, in buckets of about one worth (next_use_nearest.cc). Empty until
  // SetBelow.
  ChunkLinks below_links_;
  std::vector<ChunkLinks::List> below_;
  std::vector<uint16_t> rank_of_, bucket_at_;  // by worth, the highest first
  std::vector<uint64_t> filled_;               // a bit for each rank whose bucket is not empty
  uint64_t below_count_ = 0;
  uint64_t values_made_ = 0;  // times that values_ were made; and those ranked:
  uint64_t values_ranked_ = 0;
  int64_t aged_ns_ = kNever;
};

}  // namespace turnkeep
