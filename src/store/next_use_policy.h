// next_use: evicts what is least likely to be used within the time that chunks stay in the tier.
//
// Chunks are put into classes by the turn that used them last: its number in the session (where
// that is not known, how often the chunk was used), how long its context was and how it ended;
// tails are a class of their own. For every class the policy learns online, of a sample of the
// chunks, how often a chunk that has not been used for a given time is used in the next stretch of
// time: hazard by age, ages in steps that grow by a half, old experience fading. Chunks that left
// the tier go on being observed as long as their index means the same chunk, so that what is
// learned does not depend on what was kept.
//
// In a class the least recently used goes first; among the classes' oldest the one that gives the
// fewest uses for the time it is expected to stay: its probability of use within the horizon ÷ the
// mean time until that use or the horizon, which is the mean age of victims. So a decision looks at
// one chunk a class. 34 bytes a chunk.
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

namespace turnkeep {

class NextUsePolicy final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "next_use"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

  // The learned probability that a chunk of this kind, unused for `age_s`, is used within the
  // next `horizon_s`. For tests and explanations.
  double UseProbability(const TurnInfo& turn, double age_s, double horizon_s) const;

 private:
  static constexpr uint32_t kTurnClasses = 6;  // 1, 2, 3, 4, 5 to 8, more
  static constexpr uint32_t kContextClasses = 3;
  static constexpr uint32_t kTailClass = kTurnClasses * kContextClasses * kStopReasons;
  static constexpr uint32_t kClasses = kTailClass + 1;
  static constexpr uint32_t kAllClasses = kClasses;  // but tails
  static constexpr uint32_t kAges = 40;              // steps of age

  struct State {
    int64_t last_use_ns = kNever;
    uint32_t uses = 0;
    uint8_t use_class = 0;
    TurnInfo turn;
  };
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
  // What was seen of a class at an age: chunks that reached it unused, and those used in it.
  struct Experience {
    double reached = 0;
    double used = 0;
  };
  struct Sample {
    ChunkIndex chunk;
    int64_t time_ns;
  };

  static uint32_t ClassOf(const TurnInfo& turn, uint32_t uses);
  void SetClass(ChunkIndex chunk);
  static uint32_t AgeOf(double age_s);
  static const std::array<double, kAges + 1>& AgeBegins();  // seconds
  State& At(ChunkIndex chunk);
  void Use(ChunkIndex chunk, int64_t now_ns);
  void Observe(ChunkIndex chunk, const State& before, int64_t now_ns);
  void AdvanceSamples(int64_t now_ns);
  void Fade();
  double Hazard(uint32_t use_class, uint32_t age) const;
  // Of a use within the horizon, and the mean time until it or the horizon.
  struct Outlook {
    double probability = 0;
    double mean_s = 0;
  };
  Outlook OutlookOf(uint32_t use_class, double age_s, double horizon_s) const;
  void RefreshValues();

  ChunkLinks links_;
  std::array<ChunkLinks::List, kClasses> lists_;
  std::vector<State> states_;
  int64_t now_ns_ = 0;

  std::array<std::array<Experience, kAges>, kClasses + 1> experience_{};  // kAllClasses last
  std::deque<Sample> samples_;
  uint64_t first_sample_ = 0;              // number of samples_.front()
  std::array<uint64_t, kAges> reached_{};  // samples before this number have passed the age
  uint64_t sampled_ = 0;
  double horizon_s_ = 60;
  std::array<std::array<float, kAges>, kClasses> values_{};  // uses a second by class and age
  uint32_t decisions_ = 0;
};

}  // namespace turnkeep
