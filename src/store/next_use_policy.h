// next_use: evicts what is least likely to be used within the time that chunks stay in the tier.
//
// Chunks are put into classes by how often they were used and how the turn ended that used them
// last. For every class the policy learns online, of a sample of the chunks, how often a chunk
// that has not been used for a given time is used in the next stretch of time: hazard by age, ages
// in steps that grow by a half, old experience fading. Chunks that left the tier go on being
// observed as long as their index means the same chunk, so that what is learned does not depend on
// what was kept.
//
// In a class the least recently used goes first; among the classes' oldest the one whose
// probability of use within the horizon is smallest, the horizon being the mean age of
// victims. So a decision looks at one chunk a class. 33 bytes a chunk.
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
  void NoteStop(ChunkIndex chunk, StopReason reason, int64_t now_ns) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

  // The learned probability that a chunk of this kind, unused for `age_s`, is used within the
  // next `horizon_s`. For tests and explanations.
  double UseProbability(uint32_t uses, StopReason reason, double age_s, double horizon_s) const;

 private:
  static constexpr uint32_t kUseClasses = 6;  // 1, 2, 3, 4, 5 to 8, more
  static constexpr uint32_t kClasses = kUseClasses * kStopReasons;
  static constexpr uint32_t kAges = 40;  // steps of age

  struct State {
    int64_t last_use_ns = kNever;
    uint32_t uses = 0;
    uint8_t use_class = 0;
    StopReason stop = StopReason::kUnknown;
  };
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();
  // What was seen of a class at an age: chunks that reached it unused, and those used in it.
  struct Experience {
    double reached = 0;
    double used = 0;
  };
  struct Sample {
    ChunkIndex chunk;
    uint8_t use_class;
    int64_t time_ns;
  };

  static uint32_t ClassOf(uint32_t uses, StopReason stop);
  static uint32_t AgeOf(double age_s);
  static double AgeBegin(uint32_t age);  // seconds
  State& At(ChunkIndex chunk);
  void Use(ChunkIndex chunk, int64_t now_ns);
  void Observe(ChunkIndex chunk, const State& before, int64_t now_ns);
  void AdvanceSamples(int64_t now_ns);
  void Fade();
  double Hazard(uint32_t use_class, uint32_t age) const;
  double Probability(uint32_t use_class, double age_s, double horizon_s) const;
  void RefreshValues();

  ChunkLinks links_;
  std::array<ChunkLinks::List, kClasses> lists_;
  std::vector<State> states_;
  int64_t now_ns_ = 0;

  std::array<std::array<Experience, kAges>, kClasses> experience_{};
  std::deque<Sample> samples_;
  uint64_t first_sample_ = 0;              // number of samples_.front()
  std::array<uint64_t, kAges> reached_{};  // samples before this number have passed the age
  uint64_t sampled_ = 0;
  double horizon_s_ = 60;
  std::array<std::array<float, kAges>, kClasses> values_{};  // probability by class and age
  uint32_t decisions_ = 0;
};

}  // namespace turnkeep
