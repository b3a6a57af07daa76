#include "llama/batch_run.h"

#include <chrono>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "core/status.h"
#include "llama/batch_decoder.h"
#include "llama/kv_bridge.h"

namespace turnkeep::llama {

namespace {

using Clock = std::chrono::steady_clock;
using Answers = std::vector<std::vector<uint32_t>>;

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class BatchRun {
 public:
  BatchRun(Engine* engine, const BatchOptions& options)
      : engine_(engine), options_(options), random_(options.seed) {
    logits_.resize(vocab());
    system_tokens_ = Draw(options.system_tokens);
    for (uint32_t i = 0; i < options.sessions; ++i) users_.push_back(Draw(options.user_tokens));
  }

  // The system prompt's KV into a sequence of its own.
  absl::Status Begin(KvStore* store, BatchReport* report) {
    const uint32_t each = options_.user_tokens + options_.answer_tokens + 2 * kPageTokens;
    TK_ASSIGN_OR_RETURN(cache_,
                        engine_->NewCache({.page_tokens = kPageTokens,
                                           .token_count = options_.system_tokens + kPageTokens +
                                                          options_.sessions * each}));
    system_ = std::make_unique<Sequence>(cache_.get());
    const auto begin = Clock::now();
    if (store == nullptr) {
      TK_RETURN_IF_ERROR(engine_->Prefill(system_.get(), system_tokens_, 0, nullptr, logits_));
    } else {
      KvBridge bridge(store, engine_,
                      {.session = options_.session, .chunk_tokens = options_.chunk_tokens});
      TK_ASSIGN_OR_RETURN(const KvBridge::Report prefill,
                          bridge.Prefill(system_.get(), system_tokens_, logits_));
      report->restored_tokens = prefill.restored_host_tokens + prefill.restored_disk_tokens;
    }
    report->system_ms = MillisecondsSince(begin);
    return absl::OkStatus();
  }

  // Answers of all sessions; through attention plans or row by row.
  absl::StatusOr<Answers> Decode(bool together, double* ms) {
    TK_ASSIGN_OR_RETURN(const auto batch, BatchDecoder::Create(engine_, cache_.get(), "auto"));
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<uint32_t> last;
    for (uint32_t i = 0; i < options_.sessions; ++i) {
      sequences.push_back(std::make_unique<Sequence>(cache_.get()));
      Sequence* const sequence = sequences.back().get();
      TK_RETURN_IF_ERROR(sequence->ShareFrom(*system_, options_.system_tokens));
      TK_RETURN_IF_ERROR(
          engine_->Prefill(sequence, users_[i], options_.system_tokens, nullptr, logits_));
      last.push_back(Greedy(logits_));
      batch->Join(sequence, options_.system_tokens + options_.user_tokens);
    }
    Answers answers(options_.sessions);
    std::vector<float> all(size_t{options_.sessions} * vocab());
    const auto start = Clock::now();
    for (uint32_t step = 0; step < options_.answer_tokens; ++step) {
      for (uint32_t i = 0; i < options_.sessions; ++i) answers[i].push_back(last[i]);
      TK_RETURN_IF_ERROR(together ? batch->Step(last, all) : StepRows(sequences, last, step, all));
      for (uint32_t i = 0; i < options_.sessions; ++i)
        last[i] = Greedy(std::span(all).subspan(size_t{i} * vocab(), vocab()));
    }
    *ms = MillisecondsSince(start);
    return answers;
  }

 private:
  static constexpr uint32_t kPageTokens = 16;

  absl::Status StepRows(const std::vector<std::unique_ptr<Sequence>>& sequences,
                        std::span<const uint32_t> last, uint32_t step, std::span<float> logits) {
    const uint32_t position = options_.system_tokens + options_.user_tokens + step;
    std::vector<Engine::Row> rows;
    std::vector<uint32_t> each;
    for (uint32_t i = 0; i < sequences.size(); ++i) {
      TK_RETURN_IF_ERROR(sequences[i]->Reserve(size_t{position} + 1));
      rows.push_back({sequences[i].get(), last[i], position});
      each.push_back(i);
    }
    return engine_->Forward(rows, nullptr, each, logits);
  }

  uint32_t vocab() const { return engine_->model().config().vocab; }
  std::vector<uint32_t> Draw(uint32_t count) {
    std::vector<uint32_t> tokens(count);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(random_() % vocab());
    return tokens;
  }

  Engine* const engine_;
  const BatchOptions options_;
  std::mt19937_64 random_;
  std::vector<float> logits_;
  std::vector<uint32_t> system_tokens_;
  std::vector<std::vector<uint32_t>> users_;
  std::unique_ptr<PagedKvCache> cache_;
  std::unique_ptr<Sequence> system_;
};

}  // namespace

absl::StatusOr<BatchReport> RunBatch(Engine* engine, KvStore* store, const BatchOptions& options) {
  BatchReport report;
  BatchRun run(engine, options);
  TK_RETURN_IF_ERROR(run.Begin(store, &report));
  double together_ms = 0;
  double one_by_one_ms = 0;
  TK_ASSIGN_OR_RETURN(const Answers together, run.Decode(true, &together_ms));
  TK_ASSIGN_OR_RETURN(const Answers one_by_one, run.Decode(false, &one_by_one_ms));
  const double tokens = 1000.0 * options.sessions * options.answer_tokens;
  report.tokens_per_s = tokens / together_ms;
  report.tokens_per_s_one_by_one = tokens / one_by_one_ms;
  for (uint32_t i = 0; i < options.sessions; ++i)
    report.same_answers += together[i] == one_by_one[i] ? 1 : 0;
  return report;
}

}  // namespace turnkeep::llama
