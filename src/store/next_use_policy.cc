#include "store/next_use_policy.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "store/chunk_array.h"

namespace turnkeep {

namespace {

constexpr uint64_t kMaxSamples = 1 << 16;
// Experience halves after so many samples.
constexpr uint64_t kHalfLife = 1 << 19;
constexpr double kGapSeconds = 15;  // and four times as long, and sixteen times
// Values are made again after 1, 2, 4, … and then every so many decisions, ratios after as many
// samples too, since what is used now is classed by them for as long as it is not used again.
constexpr uint32_t kRefreshEvery = 4096;

uint32_t HashOf(ChunkIndex chunk) {
  uint32_t x = chunk * 2654435761u;
  x ^= x >> 15;
  return x * 2246822519u;
}

// 0 below `first`, 1 below the next step, ...; at most `most`. Every step is 2^`bits` times as
// long.
uint32_t LevelOf(uint64_t tokens, uint64_t first, uint32_t bits, uint32_t most) {
  uint32_t level = 0;
  for (; level < most && tokens >= first; first <<= bits) ++level;
  return level;
}

}  // namespace

NextUsePolicy::NextUsePolicy() : classes_of_(kCells, kNoClass) {
  for (uint32_t c = 0; c < kTailClass; ++c) {
    const auto ratio = [](uint32_t score) {
      return std::exp2((static_cast<float>(score) - kEvenScore) / 2);
    };
    hazards_.SetPrior(c, 0, ratio(c / kScores));
    hazards_.SetPrior(c, 1, ratio(c % kScores));
  }
  heads_.fill(kNoChunk);
  head_values_.fill(std::numeric_limits<float>::infinity());
  // A node whose classes are all empty must be won by one of them: another's worth may change
  // without the node being told.
  for (uint32_t node = kLeaves - 1; node > 0; --node) {
    winners_[node] =
        2 * node >= kLeaves ? static_cast<uint16_t>(2 * node - kLeaves) : winners_[2 * node];
  }
}

uint32_t NextUsePolicy::TurnCellOf(const TurnInfo& turn) {
  if (turn.tail) return kTurnCells;
  const uint32_t tenant = std::min<uint32_t>(turn.tenant, kTenants - 1);
  static constexpr uint8_t kTurnLevels[] = {0, 0, 1, 2, 3, 4, 4, 4};
  const uint32_t number = turn.number < 8 ? kTurnLevels[turn.number] : kTurns - 1;
  const auto known = [](uint64_t tokens) { return tokens != TurnInfo::kUnknownTokens; };
  const uint32_t fresh =
      known(turn.new_tokens) ? 1 + LevelOf(turn.new_tokens, 256, 2, kNews - 2) : 0;
  const uint32_t context =
      turn.context_tokens > 0 ? 1 + LevelOf(turn.context_tokens, 512, 1, kContexts - 2) : 0;
  const uint32_t answer =
      known(turn.answer_tokens) ? 1 + LevelOf(turn.answer_tokens, 16, 2, kAnswers - 2) : 0;
  uint32_t cell = tenant;
  cell = cell * kTurns + number;
  cell = cell * kNews + fresh;
  cell = cell * kContexts + context;
  cell = cell * kAnswers + answer;
  return cell * kStopReasons + static_cast<uint32_t>(turn.stop);
}

uint32_t NextUsePolicy::GapOf(double gap_s) {
  return gap_s < kGapSeconds ? 1 : gap_s < 4 * kGapSeconds ? 2 : gap_s < 16 * kGapSeconds ? 3 : 4;
}

uint32_t NextUsePolicy::ScoresOf(uint32_t cell) const {
  uint32_t scores = 0;
  for (const UseRatios& ratios : ratios_) {
    const float level = std::round(2 * std::log2(ratios.Ratio(cell))) + kEvenScore;
    scores = scores * kScores + static_cast<uint32_t>(std::clamp(level, 0.f, kScores - 1.f));
  }
  return scores;
}

uint32_t NextUsePolicy::ClassOf(const State& state) const {
  if (state.left > 0) return kLeftClass + state.left - 1;
  if (state.turn_cell == kTurnCells) return kTailClass;
  if (state.running) return kRunningClass + state.gap;
  const uint16_t known = classes_of_[CellOf(state)];
  return known != kNoClass ? known : ScoresOf(CellOf(state));
}

NextUsePolicy::State& NextUsePolicy::At(ChunkIndex chunk) { return AtChunk(states_, chunk); }

double NextUsePolicy::AgeSeconds(const State& state) const {
  return static_cast<double>(now_ns_ - state.last_use_ns) * 1e-9;
}

void NextUsePolicy::Insert(ChunkIndex chunk, uint64_t, int64_t now_ns) {
  TK_CHECK(!links_.Contains(chunk));
  State& state = At(chunk);
  // A promotion inserts what a use has just touched.
  if (state.last_use_ns == kNever) Use(chunk, state, now_ns);
  if (state.expected) {
    TK_CHECK(expected_members_.emplace(expected_[chunk], chunk).second);
  } else {
    Push(state.use_class, chunk);
  }
}

void NextUsePolicy::Touch(ChunkIndex chunk, int64_t now_ns) {
  State& state = At(chunk);
  // Those that are shown and may not go are touched with time 0: they only move. So does what a
  // turn brings for itself while it runs.
  if (now_ns > 0 && now_ns != state.last_use_ns && !state.running) Use(chunk, state, now_ns);
  if (links_.Contains(chunk)) MoveToNewest(state.use_class, chunk);
}

void NextUsePolicy::Remove(ChunkIndex chunk) {
  const State& state = At(chunk);
  if (state.expected) {
    TK_CHECK(expected_members_.erase({expected_[chunk], chunk}) == 1);
  } else {
    TK_CHECK(links_.Contains(chunk));
    Unlink(state.use_class, chunk);
  }
}

// What was observed of it ends here: neither used nor unused later.
void NextUsePolicy::Forget(ChunkIndex chunk) {
  TK_CHECK(!links_.Contains(chunk));
  if (chunk >= states_.size()) return;
  State& state = states_[chunk];
  if (state.below != kNotBelow) LeaveBelow(chunk, state);
  if (state.expected) expected_.erase(chunk);
  state = State{};
}

void NextUsePolicy::NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t now_ns) {
  if (turn.next != kNoChunk) At(turn.next);
  State& state = At(chunk);
  const bool later = now_ns != state.last_use_ns;
  const bool chosen = Choose(chunk, turn.next);
  if (turn.is_use) {
    const bool same_turn = turn.goes_on && state.running;
    // Who never tells of ends has its uses counted from one to the next.
    const bool runs = turn.running && ends_are_told_;
    if (later && !same_turn) {
      Observe(chunk, state, now_ns, /*sample=*/chosen && !runs);
      if (chosen && runs) ObserveFromBegin(chunk, state, now_ns);
    }
    state.running = runs;
  } else {
    if (later) Restart(chunk, state, now_ns, chosen);
    state.running = false;
    ends_are_told_ = true;
  }
  if (turn.next != kNoChunk) GoOn(state, turn.next, now_ns);
  state.turn_cell = static_cast<uint16_t>(TurnCellOf(turn));
  SetClass(chunk, state);
  if (later && links_.Contains(chunk)) MoveToNewest(state.use_class, chunk);
}

void NextUsePolicy::SetClass(ChunkIndex chunk, State& state) {
  const uint32_t use_class = ClassOf(state);
  if (use_class < kTailClass) classes_of_[CellOf(state)] = static_cast<uint16_t>(use_class);
  if (use_class != state.use_class && links_.Contains(chunk)) {
    Unlink(state.use_class, chunk);
    Push(use_class, chunk);
  }
  state.use_class = static_cast<uint16_t>(use_class);
  if (state.below != kNotBelow) {
    LeaveBelow(chunk, state);
    EnterBelow(chunk, state);
  }
}

// A turn through `state` goes on to `next`. What the last one went on to, and this one does not, is
// left behind: a conversation goes another way from there (an answer was made again, a search's
// results were taken out). Where that has happened often, others begin alike, and it says nothing.
void NextUsePolicy::GoOn(State& state, ChunkIndex next, int64_t now_ns) {
  const ChunkIndex before = std::exchange(state.next, next);
  if (before == next || before == kNoChunk || state.forks == kMaxForks) return;
  const State& other = states_[before];
  // A tail is always replaced.
  if (other.last_use_ns >= now_ns || other.turn_cell == kTurnCells) return;
  LeaveBehind(before, ++state.forks);
}

// From `first` on, as far as one turn used it. The last goes first.
void NextUsePolicy::LeaveBehind(ChunkIndex first, uint8_t fork) {
  const int64_t last_use_ns = states_[first].last_use_ns;
  for (ChunkIndex chunk = first; chunk != kNoChunk; chunk = states_[chunk].next) {
    State& state = states_[chunk];
    if (state.last_use_ns != last_use_ns || state.running || state.left > 0) break;
    state.left = fork;
    left_.push_back(chunk);
  }
  for (; !left_.empty(); left_.pop_back()) SetClass(left_.back(), states_[left_.back()]);
}

// ---- learning --------------------------------------------------------------------

bool NextUsePolicy::Choose(ChunkIndex chunk, ChunkIndex next) {
  told_count_ = next != kNoChunk && next == told_ ? told_count_ + 1 : 1;
  told_ = chunk;
  return std::has_single_bit(told_count_);
}

bool NextUsePolicy::Watched(ChunkIndex chunk) const { return HashOf(chunk) <= sample_threshold_; }

bool NextUsePolicy::Holds(const Sample& sample) const {
  const State& state = states_[sample.chunk];
  if (state.expected) return false;
  const int64_t since_ns = sample.from_begin ? state.begin_ns : state.last_use_ns;
  return since_ns == sample.time_ns && (sample.from_begin || state.sampled) &&
         Watched(sample.chunk);
}

void NextUsePolicy::Use(ChunkIndex chunk, State& state, int64_t now_ns) {
  Observe(chunk, state, now_ns, /*sample=*/true);
  SetClass(chunk, state);
}

void NextUsePolicy::AdvanceTo(int64_t now_ns) {
  if (now_ns <= now_ns_) return;
  now_ns_ = now_ns;
  AdvanceSamples();
}

// Ends what was observed of it.
void NextUsePolicy::CountUse(ChunkIndex chunk, State& state, int64_t now_ns) {
  const auto age_since = [now_ns](int64_t from_ns) {
    return UseHazards::AgeOf(static_cast<double>(now_ns - from_ns) * 1e-9);
  };
  if (state.begin_ns != kNever && Watched(chunk)) {
    hazards_.Used(kRunningClass + state.gap, age_since(state.begin_ns));
  }
  if (state.last_use_ns != kNever && !state.running && Sampled(chunk)) {
    const uint32_t age = age_since(state.last_use_ns);
    hazards_.Used(state.use_class, age);
    if (state.use_class < kTailClass) ratios_[hazards_.PhaseOf(age)].Used(CellOf(state));
  }
  state.begin_ns = kNever;
  state.sampled = false;
}

// A use ends what was observed since the one before it, unless that one's turn was running all the
// while. Without `sample` nothing is observed from here on: the end of the turn begins it.
void NextUsePolicy::Observe(ChunkIndex chunk, State& state, int64_t now_ns, bool sample) {
  AdvanceTo(now_ns);
  if (state.last_use_ns != kNever) {
    if (!state.expected) CountUse(chunk, state, now_ns);
    const double gap_s = static_cast<double>(now_ns - state.last_use_ns) * 1e-9;
    state.gap = static_cast<uint8_t>(GapOf(gap_s));
  }
  state.begin_ns = kNever;
  state.last_use_ns = now_ns;
  state.left = 0;
  state.sampled = sample;
  if (Sampled(chunk)) TakeSample({chunk, /*from_begin=*/false, now_ns});
}

void NextUsePolicy::ObserveFromBegin(ChunkIndex chunk, State& state, int64_t now_ns) {
  state.begin_ns = now_ns;
  if (Watched(chunk)) TakeSample({chunk, /*from_begin=*/true, now_ns});
}

// The turn that used it has ended: what was observed since its use says nothing of the time to the
// next, which begins now.
void NextUsePolicy::Restart(ChunkIndex chunk, State& state, int64_t now_ns, bool sample) {
  AdvanceTo(now_ns);
  state.last_use_ns = now_ns;
  state.sampled = sample;
  if (Sampled(chunk)) TakeSample({chunk, /*from_begin=*/false, now_ns});
}

void NextUsePolicy::TakeSample(const Sample& sample) {
  samples_[0].push_back(sample);
  ++sample_count_;
  ++sampled_;
  if (std::has_single_bit(sampled_) || sampled_ % kRefreshEvery == 0) FitRatios();
  if (sampled_ % kHalfLife == 0) {
    hazards_.Fade();
    for (UseRatios& ratios : ratios_) ratios.Fade();
  }
  if (sample_count_ > kMaxSamples) ThinSamples();
}

// Moves the samples that have passed an age unused to the next.
void NextUsePolicy::AdvanceSamples() {
  for (uint32_t age = 0; age < kAges; ++age) {
    std::deque<Sample>& queue = samples_[age];
    // The class is settled only after the turn was told of: nothing is counted at once.
    const auto begin_ns = static_cast<int64_t>(UseHazards::BeginOf(age) * 1e9);
    while (!queue.empty() && queue.front().time_ns + begin_ns < now_ns_) {
      const Sample sample = queue.front();
      queue.pop_front();
      if (!Holds(sample)) {
        --sample_count_;
        continue;
      }
      Reached(sample, age);
      if (age + 1 < kAges) {
        samples_[age + 1].push_back(sample);
      } else {
        --sample_count_;
      }
    }
  }
}

void NextUsePolicy::Reached(const Sample& sample, uint32_t age) {
  const State& state = states_[sample.chunk];
  if (sample.from_begin) return hazards_.Reached(kRunningClass + state.gap, age);
  hazards_.Reached(state.use_class, age);
  if (state.use_class >= kTailClass) return;
  const auto hazard = static_cast<float>(hazards_.HazardOfAll(age));
  ratios_[hazards_.PhaseOf(age)].Expected(CellOf(state), hazard);
}

// Drops what has been used since, and then halves the share of chunks that are observed until
// there is room.
void NextUsePolicy::ThinSamples() {
  const auto drop = [this] {
    sample_count_ = 0;
    for (std::deque<Sample>& queue : samples_) {
      std::erase_if(queue, [this](const Sample& sample) { return !Holds(sample); });
      sample_count_ += queue.size();
    }
  };
  drop();
  while (sample_count_ > kMaxSamples / 2) {
    sample_threshold_ /= 2;
    drop();
  }
}

double NextUsePolicy::UseProbability(const TurnInfo& turn, double gap_s, double age_s,
                                     double horizon_s) const {
  State state;
  state.turn_cell = static_cast<uint16_t>(TurnCellOf(turn));
  state.gap = static_cast<uint8_t>(gap_s > 0 ? GapOf(gap_s) : 0);
  return hazards_.Probability(ClassOf(state), age_s, horizon_s);
}

// ---- lists -----------------------------------------------------------------------

void NextUsePolicy::MarkHead(uint32_t use_class) {
  if (marked_[use_class]) return;
  marked_[use_class] = true;
  changed_.push_back(static_cast<uint16_t>(use_class));
}

void NextUsePolicy::Push(uint32_t use_class, ChunkIndex chunk) {
  if (lists_[use_class].count == 0) MarkHead(use_class);
  links_.PushNewest(lists_[use_class], chunk);
}

void NextUsePolicy::Unlink(uint32_t use_class, ChunkIndex chunk) {
  if (lists_[use_class].oldest == chunk) MarkHead(use_class);
  links_.Unlink(lists_[use_class], chunk);
}

void NextUsePolicy::MoveToNewest(uint32_t use_class, ChunkIndex chunk) {
  if (lists_[use_class].oldest == chunk) MarkHead(use_class);
  links_.MoveToNewest(lists_[use_class], chunk);
}

// A tournament of the classes' heads: node n is won by the lesser of 2n and 2n + 1, the leaves are
// the classes.
void NextUsePolicy::SetHead(uint32_t use_class, ChunkIndex chunk) {
  heads_[use_class] = chunk;
  head_values_[use_class] = ValueOf(use_class, chunk);
  for (uint32_t node = (kLeaves + use_class) / 2; node > 0; node /= 2) {
    const auto winner = [&](uint32_t child) {
      return child >= kLeaves ? static_cast<uint16_t>(child - kLeaves) : winners_[child];
    };
    const uint16_t left = winner(2 * node);
    const uint16_t right = winner(2 * node + 1);
    winners_[node] = head_values_[right] < head_values_[left] ? right : left;
  }
}

// Most decisions come in a row at one time: only what has changed is valued again.
void NextUsePolicy::RefreshHeads() {
  if (heads_ns_ != now_ns_) {
    heads_ns_ = now_ns_;
    for (uint32_t c = 0; c < kClasses; ++c) {
      if (lists_[c].count > 0) MarkHead(c);
    }
  }
  for (const uint16_t c : changed_) {
    SetHead(c, lists_[c].oldest);
    marked_[c] = false;
  }
  changed_.clear();
}

// ---- deciding --------------------------------------------------------------------

void NextUsePolicy::FitRatios() {
  hazards_.Settle();
  for (UseRatios& ratios : ratios_) ratios.Fit();
  std::fill(classes_of_.begin(), classes_of_.end(), kNoClass);
}

void NextUsePolicy::RefreshValues() {
  values_.resize(kClasses);
  ++values_made_;
  heads_ns_ = kNever;
  FitRatios();
  for (uint32_t c = 0; c < kClasses; ++c) hazards_.Values(c, &values_[c]);
}

float NextUsePolicy::ValueOf(uint32_t use_class, ChunkIndex chunk) const {
  if (chunk == kNoChunk) return std::numeric_limits<float>::infinity();
  return values_[use_class][UseHazards::AgeOf(AgeSeconds(states_[chunk]))];
}

ChunkIndex NextUsePolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept,
                                     uint32_t limit) {
  if ((decisions_ & (decisions_ - 1)) == 0 || decisions_ % kRefreshEvery == 0) RefreshValues();
  ++decisions_;
  RefreshHeads();
  auto furthest = expected_members_.rbegin();
  for (uint32_t shown = 0; shown < limit; ++shown) {
    const uint32_t c = winners_[1];
    const ChunkIndex chunk = heads_[c];
    const bool told = furthest != expected_members_.rend() &&
                      (chunk == kNoChunk || ExpectedValue(furthest->first) < head_values_[c]);
    if (told) {
      if (accept(furthest->second)) return furthest->second;
      ++furthest;
      continue;
    }
    if (chunk == kNoChunk) return kNoChunk;
    if (accept(chunk)) return chunk;
    SetHead(c, links_.Newer(chunk));
    MarkHead(c);  // which is not the oldest
  }
  return kNoChunk;
}

}  // namespace turnkeep
