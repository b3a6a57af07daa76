#include "store/use_hazards.h"

#include <algorithm>
#include <cmath>

namespace turnkeep {

namespace {

constexpr double kFirstAgeSeconds = 0.1;
constexpr double kAgeGrowth = 1.5;
// What is believed before anything is seen: at every age, one of so many is used; and how much has
// to be seen to count as much as what is believed.
constexpr float kPriorWeight = 50;
constexpr float kPriorHazard = 0.05f;
constexpr float kClassPriorWeight = 100;
constexpr float kRatioPriorUses = 5;

}  // namespace

UseHazards::UseHazards(uint32_t class_count, uint32_t apart_count)
    : common_count_(class_count - apart_count),
      classes_(class_count),
      priors_(class_count, ByPhase{1, 1}),
      ratios_(priors_) {
  of_all_.fill(kPriorHazard);
}

const UseHazards::Begins& UseHazards::AllBegins() {
  static const Begins begins = [] {
    Begins table{};
    for (uint32_t i = 1; i <= kAges; ++i)
      table[i] = kFirstAgeSeconds * std::pow(kAgeGrowth, i - 1.0);
    return table;
  }();
  return begins;
}

double UseHazards::BeginOf(uint32_t age) { return AllBegins()[age]; }

uint32_t UseHazards::AgeOf(double age_s) {
  if (age_s < kFirstAgeSeconds) return 0;
  static const double per_step = 1 / std::log2(kAgeGrowth);
  auto age = static_cast<uint32_t>(std::log2(age_s / kFirstAgeSeconds) * per_step) + 1;
  if (age >= kAges) return kAges - 1;
  // The logarithm may be off by one at a border.
  if (age_s < BeginOf(age)) --age;
  if (age_s >= BeginOf(age + 1)) ++age;
  return std::min(age, kAges - 1);
}

void UseHazards::SetPrior(uint32_t use_class, uint32_t phase, float ratio) {
  priors_[use_class][phase] = ratios_[use_class][phase] = ratio;
}

void UseHazards::Reached(uint32_t use_class, uint32_t age) {
  ++classes_[use_class][age].reached;
  if (use_class < common_count_) ++all_[age].reached;
}

void UseHazards::Used(uint32_t use_class, uint32_t age) {
  ++classes_[use_class][age].used;
  if (use_class < common_count_) ++all_[age].used;
}

void UseHazards::Fade() {
  const auto halve = [](ByAge& ages) {
    for (Experience& at : ages) at = {at.reached * 0.5f, at.used * 0.5f};
  };
  for (ByAge& ages : classes_) halve(ages);
  halve(all_);
}

void UseHazards::Settle() {
  // Of an age of which little was seen, what holds for the one before is believed.
  float before = kPriorHazard;
  for (uint32_t age = 0; age < kAges; ++age) {
    before = (all_[age].used + before * kPriorWeight) / (all_[age].reached + kPriorWeight);
    of_all_[age] = before;
  }
  float uses = 0;
  for (const Experience& at : all_) uses += at.used;
  float early = 0;
  for (late_ = 0; uses > 0 && late_ + 1 < kAges && 2 * (early + all_[late_].used) < uses; ++late_) {
    early += all_[late_].used;
  }
  if (uses == 0) late_ = kAges / 2;
  for (size_t c = 0; c < classes_.size(); ++c) {
    ByPhase used;
    ByPhase expected;
    expected.fill(kRatioPriorUses);
    for (uint32_t phase = 0; phase < kPhases; ++phase) {
      used[phase] = kRatioPriorUses * priors_[c][phase];
    }
    for (uint32_t age = 0; age < kAges; ++age) {
      used[PhaseOf(age)] += classes_[c][age].used;
      expected[PhaseOf(age)] += classes_[c][age].reached * of_all_[age];
    }
    for (uint32_t phase = 0; phase < kPhases; ++phase) {
      ratios_[c][phase] = used[phase] / expected[phase];
    }
  }
}

double UseHazards::Hazard(uint32_t use_class, uint32_t age) const {
  const Experience& at = classes_[use_class][age];
  const float prior = of_all_[age] * ratios_[use_class][PhaseOf(age)];
  return std::min(1.0f, (at.used + prior * kClassPriorWeight) / (at.reached + kClassPriorWeight));
}

double UseHazards::Probability(uint32_t use_class, double age_s, double horizon_s) const {
  double unused = 1;
  const double end_s = age_s + horizon_s;
  for (uint32_t age = AgeOf(age_s); age < kAges; ++age) {
    const double begin = std::max(BeginOf(age), age_s);
    if (begin >= end_s) break;
    const double part =
        (std::min(end_s, BeginOf(age + 1)) - begin) / (BeginOf(age + 1) - BeginOf(age));
    unused *= std::pow(1 - Hazard(use_class, age), part);
  }
  return 1 - unused;
}

void UseHazards::Values(uint32_t use_class, std::array<float, kAges>* values) const {
  std::array<double, kAges> stays;
  std::array<double, kAges> lengths;
  for (uint32_t age = 0; age < kAges; ++age) {
    stays[age] = 1 - Hazard(use_class, age);
    lengths[age] = AllBegins()[age + 1] - AllBegins()[age];
  }
  for (uint32_t from = 0; from < kAges; ++from) {
    double unused = 1;
    double seconds = 0;
    double best = 0;
    for (uint32_t age = from; age < kAges; ++age) {
      const double after = unused * stays[age];
      seconds += (unused + after) / 2 * lengths[age];
      unused = after;
      best = std::max(best, (1 - unused) / seconds);
    }
    (*values)[from] = static_cast<float>(best);
  }
}

}  // namespace turnkeep
