// Hazards by class and age: of the chunks of a class that reach an age unused, how many are used in
// its step. Ages are in steps that grow by a half.
//
// Of what little is known of a class it is believed to be like all classes times one ratio
// (proportional hazards, Cox 1972): its uses to those that the hazards of all would have given it.
// One ratio for each of two phases, the ages before and after which half of the uses come.
//
// Thread-compatible; deterministic.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace turnkeep {

class UseHazards {
 public:
  static constexpr uint32_t kAges = 40;
  static constexpr uint32_t kPhases = 2;
  // The last `apart_count` classes are apart: nothing is concluded from them for the others.
  UseHazards(uint32_t class_count, uint32_t apart_count);

  static uint32_t AgeOf(double age_s);
  static double BeginOf(uint32_t age);  // seconds; of kAges: the end

  // What the ratio is believed to be before anything is seen.
  void SetPrior(uint32_t use_class, uint32_t phase, float ratio);

  void Reached(uint32_t use_class, uint32_t age);
  void Used(uint32_t use_class, uint32_t age);
  void Fade();  // halves all experience

  // Makes the phases and the ratios anew.
  void Settle();
  uint32_t PhaseOf(uint32_t age) const { return age >= late_ ? 1 : 0; }
  double HazardOfAll(uint32_t age) const { return of_all_[age]; }
  double Hazard(uint32_t use_class, uint32_t age) const;
  // Of a use within the horizon.
  double Probability(uint32_t use_class, double age_s, double horizon_s) const;
  // The best rate of uses over any horizon, by age.
  void Values(uint32_t use_class, std::array<float, kAges>* values) const;

 private:
  struct Experience {
    float reached = 0;
    float used = 0;
  };
  using ByAge = std::array<Experience, kAges>;
  using Begins = std::array<double, kAges + 1>;
  static const Begins& AllBegins();
  const uint32_t common_count_;  // of the classes that are not apart
  std::vector<ByAge> classes_;
  using ByPhase = std::array<float, kPhases>;
  std::vector<ByPhase> priors_;
  std::vector<ByPhase> ratios_;  // of a class's hazards to those of all, as of Settle
  uint32_t late_ = kAges / 2;    // the first age of the second phase
  ByAge all_{};
  std::array<float, kAges> of_all_;  // hazards, as of Settle
};

}  // namespace turnkeep
