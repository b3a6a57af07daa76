// next_use: evicts what gives the fewest uses for the time that it is expected to stay, learned
// online.
//
// What is known of a chunk's last use, whose it was, how the turn ended, its number in the session,
// how long its context was, how much of that was new, how long its answer was, and how long before
// that the chunk had been used, gives it two scores: how much likelier than others it is to be used
// soon, and later (use_ratios.h). Chunks of about the same scores are in one class. Tails, which
// the next turn replaces, are a class of their own, and so is what a turn has left behind that went
// back into the prompt before it and on from there. So is what a running turn uses, whose answer
// and end nobody knows yet: its ages count from the turn's beginning to the next turn's, all
// others' from the end. For every class the policy learns, of a sample of the chunks, how often a
// chunk that has not been used for a given age is used in the next stretch of time (use_hazards.h);
// old experience fades.
//
// A chunk of age a in class c is worth the best rate of uses that keeping it can give,
// max over horizons t of P(use before t | a) / E[min(time to use, t) | a], the index of a stopping
// problem (Gittins 1979). In a class the least recently used stands for all, and of these the
// least worth goes. A newcomer of a class that is worth less than all that is kept is the
// first to go itself, so that what is used once passes through without doing harm.
//
// Whose next use somebody tells (a hint) is worth 1 ÷ the time until then; what is due or stands in
// the queue is worth more than all that is only predicted, the later in the queue the less.
//
// Chunks that one turn used share their fate: of each turn only the first, second, fourth, eighth,
// ... from the last are observed, so that a long prompt does not count as much as many short ones.
// Of these, those of a hash below a threshold that falls as they become many (Waldspurger et al.
// 2015), so that memory and work are bounded however long chunks live. Chunks that left the tier go
// on being observed as long as their index means the same chunk, so that what is learned does not
// depend on what was kept. 40 bytes a chunk, 48 with prefetches, 60 more of one that is expected;
// and 6 MB.
//
// Thread-compatible.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include <absl/container/btree_set.h>
#include <absl/container/flat_hash_map.h>

#include "store/chunk_list.h"
#include "store/policy.h"
#include "store/use_hazards.h"
#include "store/use_ratios.h"

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
  void Expect(ChunkIndex chunk, int64_t next_use) override;
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
  // Factors of the scores, and their levels.
  static constexpr uint8_t kTenants = 7;   // the first six, all later ones
  static constexpr uint8_t kGaps = 5;      // none, below 15 s, a minute, four minutes, longer
  static constexpr uint8_t kTurns = 6;     // first or not known, 2, 3, 4, 5 to 7, later
  static constexpr uint8_t kNews = 7;      // not known, then powers of four from 256
  static constexpr uint8_t kContexts = 9;  // not known, then powers of two from 512
  static constexpr uint8_t kAnswers = 6;   // not known, then powers of four from 16
  static constexpr UseRatios::Levels kLevels = {kGaps,     kTenants, kTurns,      kNews,
                                                kContexts, kAnswers, kStopReasons};
  static constexpr uint32_t kTurnCells =
      kTenants * kTurns * kNews * kContexts * kAnswers * kStopReasons;
  static constexpr uint32_t kCells = kGaps * kTurnCells;
  // Classes: by the score of each phase, a level for every factor of sqrt(2); the tails; what was
  // left behind; what running turns use, by the gap before.
  static constexpr uint32_t kScores = 16;
  static constexpr uint32_t kEvenScore = 12;  // as likely as others
  static constexpr uint32_t kTailClass = kScores * kScores;
  static constexpr uint32_t kLeftClass = kTailClass + 1;  // at a first fork; then at a second
  static constexpr uint8_t kMaxForks = 2;                 // that leave something behind
  static constexpr uint32_t kRunningClass = kLeftClass + kMaxForks;
  static constexpr uint32_t kClasses = kRunningClass + kGaps;
  static constexpr uint32_t kAges = UseHazards::kAges;

  struct State {
    int64_t last_use_ns = kNever;  // or the end of its turn
    // Of the turn that used it last, if the time to the next one's beginning is observed.
    int64_t begin_ns = kNever;
    uint16_t turn_cell = 0;  // kTurnCells: a tail
    uint16_t use_class = 0;
    uint16_t below = kNotBelow;  // its bucket of below_
    uint8_t gap = 0;
    bool sampled = false;        // its next use is observed, if its hash is
    ChunkIndex next = kNoChunk;  // that the last turn through this one went on to, if it was told
    bool running = false;        // a turn uses it, and its end will be told
    bool expected = false;       // of expected_
    uint8_t forks = 0;  // turns that went on to another than the one before, at most kMaxForks
    uint8_t left = 0;   // since its last use left behind, at a fork of this number
  };
  static_assert(kTurnCells < 0xFFFF && sizeof(State) == 32);
  static constexpr uint16_t kNotBelow = 0xFFFF;
  static constexpr uint16_t kNoClass = 0xFFFF;
  static constexpr uint32_t kBuckets = kClasses * kAges;  // by class and age
  static_assert(kBuckets < kNotBelow);
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
  struct Sample {
    ChunkIndex chunk;
    bool from_begin;  // of a turn to the next one's; else from its end
    int64_t time_ns;
  };

  static uint32_t TurnCellOf(const TurnInfo& turn);
  static uint32_t CellOf(const State& state) { return state.gap * kTurnCells + state.turn_cell; }
  static uint32_t GapOf(double gap_s);
  uint32_t ScoresOf(uint32_t cell) const;
  uint32_t ClassOf(const State& state) const;
  void SetClass(ChunkIndex chunk, State& state);
  State& At(ChunkIndex chunk);
  void Use(ChunkIndex chunk, State& state, int64_t now_ns);
  void GoOn(State& state, ChunkIndex next, int64_t now_ns);
  void LeaveBehind(ChunkIndex first, uint8_t fork);
  bool Choose(ChunkIndex chunk, ChunkIndex next);
  void Observe(ChunkIndex chunk, State& state, int64_t now_ns, bool sample);
  void Restart(ChunkIndex chunk, State& state, int64_t now_ns, bool sample);
  void AdvanceTo(int64_t now_ns);
  bool Watched(ChunkIndex chunk) const;
  bool Sampled(ChunkIndex chunk) const { return states_[chunk].sampled && Watched(chunk); }
  bool Holds(const Sample& sample) const;
  void CountUse(ChunkIndex chunk, State& state, int64_t now_ns);
  void ObserveFromBegin(ChunkIndex chunk, State& state, int64_t now_ns);
  void TakeSample(const Sample& sample);
  void AdvanceSamples();
  void Reached(const Sample& sample, uint32_t age);
  void ThinSamples();
  void FitRatios();
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
  float ExpectedValue(int64_t next_use) const;
  float ValueOf(uint32_t use_class, ChunkIndex chunk) const;
  double AgeSeconds(const State& state) const;

  ChunkLinks links_;
  std::array<ChunkLinks::List, kClasses> lists_;
  std::vector<State> states_;
  std::vector<ChunkIndex> left_;  // in LeaveBehind
  int64_t now_ns_ = 0;
  bool ends_are_told_ = false;  // of a turn, once

  std::array<UseRatios, UseHazards::kPhases> ratios_{UseRatios(kLevels), UseRatios(kLevels)};
  std::vector<uint16_t> classes_of_;  // by cell, as far as asked for since the ratios were fitted
  UseHazards hazards_{kClasses, /*apart_count=*/kClasses - kTailClass};
  // By the age that its samples have reached last; oldest first.
  std::array<std::deque<Sample>, kAges> samples_;
  uint64_t sample_count_ = 0;
  uint32_t sample_threshold_ = 0xFFFFFFFFu;  // of the hash
  ChunkIndex told_ = kNoChunk;               // by NoteTurn last
  uint32_t told_count_ = 0;                  // of that turn, one after another
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

  // Of whom somebody told the next use; those of the tier by that (next_use_expected.cc).
  absl::flat_hash_map<ChunkIndex, int64_t> expected_;
  absl::btree_set<std::pair<int64_t, ChunkIndex>> expected_members_;

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
