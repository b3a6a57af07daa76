#include "generator.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

namespace turnkeep::replay {
namespace {

constexpr double kSingleTurnShare = 0.27;
// The mean of all sessions is 5.75, so of those with several turns (5.75 - 0.27) / 0.73 =
// 7.507: two and a geometric number with mean 5.507 more.
constexpr double kMoreTurnsMean = 5.507;
constexpr double kTurnTokensMedian = 346;
constexpr double kTurnSigma = 1.0;
constexpr double kSessionSigma = 0.9;
constexpr double kPromptShare = 0.32;

// std's distributions differ between libraries; these do not.
class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  double Uniform() { return (static_cast<double>(random_() >> 11) + 0.5) * 0x1p-53; }
  double Exponential(double mean) { return -mean * std::log(Uniform()); }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }
  uint32_t Turns() {
    if (Uniform() < kSingleTurnShare) return 1;
    const double stop = 1 / (1 + kMoreTurnsMean);
    const double more = std::floor(std::log(Uniform()) / std::log(1 - stop));
    return 2 + static_cast<uint32_t>(std::min(more, 1000.0));
  }

 private:
  std::mt19937_64 random_;
};

double ThinkSeconds(const ThinkTime& think, Draw* draw) {
  switch (think.kind) {
    case ThinkTime::Kind::kFixed:
      return think.mean_s;
    case ThinkTime::Kind::kLognormal:
      return think.mean_s * std::exp(think.sigma * draw->Normal());
    default:
      return draw->Exponential(think.mean_s);
  }
}

// What one session's context is, turn by turn.
class Context {
 public:
  explicit Context(const GeneratorOptions& options) : options_(options) {}

  // `request` gets its lengths for a turn of `tokens`.
  void Turn(uint32_t tokens, TraceRequest* request) {
    const uint32_t half = options_.window_tokens / 2;
    const uint32_t turn = std::min(std::max(tokens, 2u), half);
    const auto prompt =
        std::clamp(static_cast<uint32_t>(std::lround(turn * kPromptShare)), 1u, turn - 1);
    Append(prompt, half);
    request->input_tokens = kept_ + prompt;
    request->history_tokens = valid_ ? kept_ : 0;
    request->output_tokens = turn - prompt;
    kept_ += prompt;
    valid_ = true;
    Append(turn - prompt, half);
    kept_ += turn - prompt;
  }

 private:
  void Append(uint32_t tokens, uint32_t half) {
    if (kept_ + tokens <= options_.window_tokens) return;
    kept_ = std::min(kept_, half);
    if (!options_.keep_on_overflow) valid_ = false;
  }

  const GeneratorOptions& options_;
  uint32_t kept_ = 0;
  bool valid_ = true;
};

}  // namespace

Trace GenerateConversations(const GeneratorOptions& options) {
  Draw draw(options.seed);
  Trace trace;
  trace.name = "sharegpt";
  trace.block_tokens = options.window_tokens;
  trace.closed_loop = true;
  trace.whole_sessions = true;
  double start_s = 0;
  for (uint32_t session = 0; session < options.sessions; ++session) {
    start_s += draw.Exponential(1 / options.sessions_per_s);
    const uint32_t turns = draw.Turns();
    const double factor = std::exp(kSessionSigma * draw.Normal());
    Context context(options);
    for (uint32_t turn = 0; turn < turns; ++turn) {
      TraceRequest request;
      request.time_s = start_s;
      request.session = session;
      request.turn = turn;
      request.think_s = ThinkSeconds(options.think, &draw);
      const double tokens = kTurnTokensMedian * factor * std::exp(kTurnSigma * draw.Normal());
      context.Turn(static_cast<uint32_t>(std::min(tokens, 1e6)), &request);
      // What became invalid is another block, which nobody has; the old one ages away.
      if (turn == 0 || request.history_tokens == 0) trace.runs.push_back({trace.block_count++, 1});
      request.first_run = trace.runs.size() - 1;
      request.run_count = 1;
      request.block_count = 1;
      const auto index = static_cast<uint32_t>(trace.requests.size());
      if (turn > 0) trace.requests[index - 1].next_turn = index;
      trace.requests.push_back(request);
    }
  }
  trace.session_count = options.sessions;
  trace.reference_count = trace.requests.size();
  return trace;
}

}  // namespace turnkeep::replay
