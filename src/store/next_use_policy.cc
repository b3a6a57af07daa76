#include "store/next_use_policy.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace turnkeep {

namespace {

constexpr double kFirstAgeSeconds = 0.1;
constexpr double kAgeGrowth = 1.5;
constexpr uint32_t kSampleOneOf = 8;
constexpr size_t kMaxSamples = 1 << 18;
// Experience halves after so many samples.
constexpr uint64_t kHalfLife = 1 << 17;
// What is believed before anything is seen: at every age, one of so many is used.
constexpr double kPriorWeight = 4;
constexpr double kPriorHazard = 0.05;
constexpr double kClassPriorWeight = 50;
constexpr uint64_t kLongContextTokens = 8192;
constexpr uint64_t kVeryLongContextTokens = 32768;
// Values are made again after 1, 2, 4, … and then every so many decisions.
constexpr uint32_t kRefreshEvery = 1024;
constexpr double kHorizonGain = 0.001;

bool Sampled(ChunkIndex chunk) { return (chunk * 2654435761u >> 16) % kSampleOneOf == 0; }

}  // namespace

uint32_t NextUsePolicy::ClassOf(const TurnInfo& turn, uint32_t uses) {
  if (turn.tail) return kTailClass;
  const uint32_t number = std::max(turn.number > 0 ? turn.number : uses, 1u);
  const uint32_t turn_class = number <= 4 ? number - 1 : number <= 8 ? 4 : 5;
  const uint32_t context_class = turn.context_tokens < kLongContextTokens       ? 0
                                 : turn.context_tokens < kVeryLongContextTokens ? 1
                                                                                : 2;
  return (turn_class * kContextClasses + context_class) * kStopReasons +
         static_cast<uint32_t>(turn.stop);
}

const std::array<double, NextUsePolicy::kAges + 1>& NextUsePolicy::AgeBegins() {
  static const auto begins = [] {
    std::array<double, kAges + 1> table{};
    for (uint32_t age = 1; age <= kAges; ++age)
      table[age] = kFirstAgeSeconds * std::pow(kAgeGrowth, age - 1.0);
    return table;
  }();
  return begins;
}

uint32_t NextUsePolicy::AgeOf(double age_s) {
  const auto& begins = AgeBegins();
  const auto after = std::upper_bound(begins.begin() + 1, begins.begin() + kAges, age_s);
  return static_cast<uint32_t>(after - begins.begin()) - 1;
}

NextUsePolicy::State& NextUsePolicy::At(ChunkIndex chunk) {
  if (chunk >= states_.size()) states_.resize(chunk + 1 + chunk / 2);
  return states_[chunk];
}

void NextUsePolicy::Insert(ChunkIndex chunk, uint64_t, int64_t now_ns) {
  TK_CHECK(!links_.Contains(chunk));
  State& state = At(chunk);
  // A promotion inserts what a use has just touched.
  if (state.last_use_ns != now_ns || state.uses == 0) Use(chunk, now_ns);
  links_.PushNewest(lists_[state.use_class], chunk);
}

void NextUsePolicy::Touch(ChunkIndex chunk, int64_t now_ns) {
  // Those that are shown and may not go are touched with time 0: they only move.
  if (now_ns > 0) Use(chunk, now_ns);
  if (links_.Contains(chunk)) links_.MoveToNewest(lists_[states_[chunk].use_class], chunk);
}

void NextUsePolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(links_.Contains(chunk));
  links_.Unlink(lists_[states_[chunk].use_class], chunk);
}

void NextUsePolicy::NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t) {
  At(chunk).turn = turn;
  SetClass(chunk);
}

void NextUsePolicy::SetClass(ChunkIndex chunk) {
  State& state = states_[chunk];
  const auto use_class = static_cast<uint8_t>(ClassOf(state.turn, state.uses));
  if (use_class == state.use_class) return;
  if (links_.Contains(chunk)) {
    links_.Unlink(lists_[state.use_class], chunk);
    links_.PushNewest(lists_[use_class], chunk);
  }
  state.use_class = use_class;
}

void NextUsePolicy::Use(ChunkIndex chunk, int64_t now_ns) {
  now_ns_ = std::max(now_ns_, now_ns);
  State& state = At(chunk);
  Observe(chunk, state, now_ns);
  if (state.uses < 0xFFFFFFFFu) ++state.uses;
  state.last_use_ns = now_ns;
  SetClass(chunk);
  if (!Sampled(chunk) || samples_.size() >= kMaxSamples) return;
  samples_.push_back({chunk, now_ns});
  if (++sampled_ % kHalfLife == 0) Fade();
}

// A use ends what was observed since the one before it. Its class is that of the time between: the
// turn was told of after the sample was taken.
void NextUsePolicy::Observe(ChunkIndex chunk, const State& before, int64_t now_ns) {
  AdvanceSamples(now_ns);
  if (before.last_use_ns == kNever || !Sampled(chunk)) return;
  const uint32_t age = AgeOf(static_cast<double>(now_ns - before.last_use_ns) * 1e-9);
  ++experience_[before.use_class][age].used;
  if (before.use_class != kTailClass) ++experience_[kAllClasses][age].used;
}

// Counts the samples that have passed an age unused.
void NextUsePolicy::AdvanceSamples(int64_t now_ns) {
  for (uint32_t age = 0; age < kAges; ++age) {
    const auto begin_ns = static_cast<int64_t>(AgeBegins()[age] * 1e9);
    uint64_t& next = reached_[age];
    next = std::max(next, first_sample_);
    while (next < first_sample_ + samples_.size()) {
      const Sample& sample = samples_[next - first_sample_];
      if (sample.time_ns + begin_ns >= now_ns) break;
      const State& state = states_[sample.chunk];
      if (state.last_use_ns == sample.time_ns) {
        ++experience_[state.use_class][age].reached;
        if (state.use_class != kTailClass) ++experience_[kAllClasses][age].reached;
      }
      ++next;
    }
    // Later samples wait for this age at least as long: nothing is due at older ages before.
    if (next == first_sample_) break;
  }
  while (!samples_.empty() && reached_[kAges - 1] > first_sample_) {
    samples_.pop_front();
    ++first_sample_;
  }
  while (samples_.size() >= kMaxSamples) {
    samples_.pop_front();
    ++first_sample_;
  }
}

void NextUsePolicy::Fade() {
  for (auto& ages : experience_) {
    for (Experience& at : ages) {
      at.reached *= 0.5;
      at.used *= 0.5;
    }
  }
}

// A class of which little is known is believed to be like all others, and all of which nothing is
// known like kPriorHazard.
double NextUsePolicy::Hazard(uint32_t use_class, uint32_t age) const {
  const Experience& all = experience_[kAllClasses][age];
  const double prior = (all.used + kPriorHazard * kPriorWeight) / (all.reached + kPriorWeight);
  const Experience& at = experience_[use_class][age];
  return std::min(1.0, (at.used + prior * kClassPriorWeight) / (at.reached + kClassPriorWeight));
}

NextUsePolicy::Outlook NextUsePolicy::OutlookOf(uint32_t use_class, double age_s,
                                                double horizon_s) const {
  double unused = 1;
  double mean_s = 0;
  const double end_s = age_s + horizon_s;
  for (uint32_t age = AgeOf(age_s); age < kAges; ++age) {
    const double begin = std::max(AgeBegins()[age], age_s);
    const double whole = AgeBegins()[age + 1] - AgeBegins()[age];
    const double part = std::min(end_s, AgeBegins()[age + 1]) - begin;
    if (begin >= end_s) break;
    const double stays = 1 - Hazard(use_class, age);
    const double after = unused * (part == whole ? stays : std::pow(stays, part / whole));
    mean_s += (unused + after) / 2 * part;
    unused = after;
  }
  return {1 - unused, mean_s};
}

double NextUsePolicy::UseProbability(const TurnInfo& turn, double age_s, double horizon_s) const {
  return OutlookOf(ClassOf(turn, 1), age_s, horizon_s).probability;
}

void NextUsePolicy::RefreshValues() {
  for (uint32_t c = 0; c < kClasses; ++c) {
    for (uint32_t age = 0; age < kAges; ++age) {
      const Outlook outlook = OutlookOf(c, AgeBegins()[age], horizon_s_);
      values_[c][age] = static_cast<float>(outlook.probability / std::max(outlook.mean_s, 1e-6));
    }
  }
}

ChunkIndex NextUsePolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept,
                                     uint32_t limit) {
  if ((decisions_ & (decisions_ - 1)) == 0 || decisions_ % kRefreshEvery == 0) RefreshValues();
  ++decisions_;
  // Where each class's list has been shown to.
  std::array<ChunkIndex, kClasses> next;
  for (uint32_t c = 0; c < kClasses; ++c) next[c] = lists_[c].oldest;
  const auto age_of = [this](ChunkIndex chunk) {
    return static_cast<double>(now_ns_ - states_[chunk].last_use_ns) * 1e-9;
  };
  for (uint32_t shown = 0; shown < limit; ++shown) {
    uint32_t best = kClasses;
    float least = std::numeric_limits<float>::infinity();
    for (uint32_t c = 0; c < kClasses; ++c) {
      if (next[c] == kNoChunk) continue;
      const float value = values_[c][AgeOf(age_of(next[c]))];
      if (value < least) {
        least = value;
        best = c;
      }
    }
    if (best == kClasses) return kNoChunk;
    const ChunkIndex chunk = next[best];
    if (accept(chunk)) {
      horizon_s_ += kHorizonGain * (std::max(1.0, age_of(chunk)) - horizon_s_);
      return chunk;
    }
    next[best] = links_.Newer(chunk);
  }
  return kNoChunk;
}

}  // namespace turnkeep
