#include "llama/conversation.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "core/status.h"

namespace turnkeep::llama {
namespace {

using Clock = std::chrono::steady_clock;

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Conversation>> Conversation::Create(Engine* engine, KvStore* store,
                                                                   Options options) {
  std::unique_ptr<Conversation> conversation(new Conversation(engine, std::move(options)));
  const Options& o = conversation->options_;
  const Engine::CacheOptions cache{.dtype = o.dtype,
                                   .keep_raw_keys = o.raw_keys,
                                   .pages = o.device == nullptr ? nullptr : o.device->pages()};
  TK_ASSIGN_OR_RETURN(conversation->cache_, engine->NewCache(cache));
  if (o.compare) {
    Engine::CacheOptions check = cache;
    // The reference of a truncated conversation, and a prompt computed from nothing beside it.
    if (o.truncate_oldest_half)
      check.token_count = 2 * engine->model().config().context + 2 * check.page_tokens;
    TK_ASSIGN_OR_RETURN(conversation->check_cache_, engine->NewCache(check));
    if (o.truncate_oldest_half)
      conversation->reference_ = std::make_unique<Sequence>(conversation->check_cache_.get());
  }
  if (store != nullptr) {
    KvBridge::Options bridge{.session = o.session, .chunk_tokens = o.chunk_tokens};
    bridge.log = o.log;
    bridge.device = o.device;
    conversation->bridge_ = std::make_unique<KvBridge>(store, engine, std::move(bridge));
  }
  return conversation;
}

Conversation::Conversation(Engine* engine, Options options)
    : engine_(engine), options_(std::move(options)) {}

bool Conversation::Fits(size_t user_tokens) const {
  return history_.size() + user_tokens + options_.answer_tokens <=
         engine_->model().config().context;
}

absl::StatusOr<TurnRow> Conversation::Turn(std::span<const uint32_t> user) {
  TurnRow row;
  if (!Fits(user.size()) && options_.truncate_oldest_half)
    TK_RETURN_IF_ERROR(DropOldestHalf(user.size(), &row));
  if (!Fits(user.size())) {
    return ResourceExhausted("turn: {} tokens, {} new and an answer of {} exceed the context of {}",
                             history_.size(), user.size(), options_.answer_tokens,
                             engine_->model().config().context);
  }
  std::vector<uint32_t> context = history_;
  context.insert(context.end(), user.begin(), user.end());
  row.context_tokens = context.size();
  const uint32_t vocab = engine_->model().config().vocab;
  Answer answer;
  answer.logits.resize(size_t{options_.answer_tokens} * vocab);

  last_.reset();
  auto sequence_holder = std::make_unique<Sequence>(cache_.get());
  Sequence& sequence = *sequence_holder;
  auto start = Clock::now();
  TK_RETURN_IF_ERROR(Prefill(&sequence, context, std::span(answer.logits).first(vocab), &row));
  row.ttft_ms = MillisecondsSince(start);
  start = Clock::now();
  TK_RETURN_IF_ERROR(Decode(&sequence, context.size(), &answer));
  row.tokens_per_s = 1000.0 * options_.answer_tokens / MillisecondsSince(start);

  history_ = context;
  history_.insert(history_.end(), answer.tokens.begin(), answer.tokens.end());
  row.answer = answer.tokens;
  if (bridge_ != nullptr) {
    // The last token of the answer has no KV: nothing followed it yet.
    bridge_->Save(sequence, std::span(history_).first(history_.size() - 1));
    (void)bridge_->Finish();  // a failure is in the log, and costs only time
  }
  if (options_.truncate_oldest_half) last_ = std::move(sequence_holder);
  if (options_.compare) TK_RETURN_IF_ERROR(Compare(context, answer, &row));
  return row;
}

absl::Status Conversation::DropOldestHalf(size_t user_tokens, TurnRow* row) {
  while (!Fits(user_tokens) && history_.size() > 2) {
    // The last token of an answer has no KV yet; it stays.
    const uint64_t tokens = history_.size() - 1;
    const uint64_t dropped = tokens / 2;
    if (last_ == nullptr) {  // a conversation that another process began
      last_ = std::make_unique<Sequence>(cache_.get());
      std::vector<float> logits(engine_->model().config().vocab);
      TurnRow ignored;
      TK_RETURN_IF_ERROR(Prefill(last_.get(), std::span(history_).first(tokens), logits, &ignored));
    }
    if (bridge_ != nullptr) {
      // A store that cannot follow costs hits: the next turn is computed.
      (void)bridge_->Truncate(last_.get(), tokens, 0, dropped);
    } else {
      TK_RETURN_IF_ERROR(engine_->Truncate(last_.get(), tokens, 0, dropped));
    }
    if (reference_ != nullptr && reference_tokens_ == tokens) {
      TK_RETURN_IF_ERROR(engine_->Truncate(reference_.get(), tokens, 0, dropped));
      reference_tokens_ -= dropped;
    } else if (reference_ != nullptr) {
      return FailedPrecondition("compare: a truncated conversation cannot be gone on with");
    }
    history_.erase(history_.begin(), history_.begin() + static_cast<ptrdiff_t>(dropped));
    row->dropped_tokens += dropped;
    truncated_ = true;
  }
  return absl::OkStatus();
}

absl::Status Conversation::Prefill(Sequence* sequence, std::span<const uint32_t> context,
                                   std::span<float> logits, TurnRow* row) {
  if (bridge_ == nullptr) {
    row->computed_tokens = context.size();
    return engine_->Prefill(sequence, context, 0, nullptr, logits);
  }
  TK_ASSIGN_OR_RETURN(const KvBridge::Report report, bridge_->Prefill(sequence, context, logits));
  row->pooled_tokens = report.pooled_tokens;
  row->stall_ms = report.stall_s * 1e3;
  row->buffer_bytes = report.buffer_bytes;
  row->predicted = report.predicted;
  row->restored_host_tokens = report.restored_host_tokens;
  row->restored_disk_tokens = report.restored_disk_tokens;
  row->computed_tokens = report.computed_tokens;
  row->miss_reason = report.miss_reason;
  return absl::OkStatus();
}

absl::Status Conversation::Decode(Sequence* sequence, uint64_t context_tokens, Answer* answer) {
  const uint32_t vocab = engine_->model().config().vocab;
  const auto logits = [&](size_t step) {
    return std::span(answer->logits).subspan(step * vocab, vocab);
  };
  for (size_t step = 0; step < options_.answer_tokens; ++step) {
    answer->tokens.push_back(Greedy(logits(step)));
    if (step + 1 == options_.answer_tokens) break;
    TK_RETURN_IF_ERROR(engine_->Prefill(sequence, {&answer->tokens.back(), 1},
                                        context_tokens + step, nullptr, logits(step + 1)));
  }
  return absl::OkStatus();
}

absl::Status Conversation::Compare(std::span<const uint32_t> context, const Answer& answer,
                                   TurnRow* row) {
  const uint32_t vocab = engine_->model().config().vocab;
  Sequence sequence(check_cache_.get());
  Answer check;
  check.logits.resize(answer.logits.size());
  const auto start = Clock::now();
  TK_RETURN_IF_ERROR(
      engine_->Prefill(&sequence, context, 0, nullptr, std::span(check.logits).first(vocab)));
  row->recompute_ttft_ms = MillisecondsSince(start);
  Sequence* decoded = &sequence;
  if (reference_ != nullptr) {
    TK_RETURN_IF_ERROR(engine_->Prefill(reference_.get(), context.subspan(reference_tokens_),
                                        reference_tokens_, nullptr,
                                        std::span(check.logits).first(vocab)));
    decoded = reference_.get();
    reference_tokens_ = context.size() + options_.answer_tokens - 1;
  }
  TK_RETURN_IF_ERROR(Decode(decoded, context.size(), &check));
  row->compared = true;
  row->identical =
      check.tokens == answer.tokens &&
      ((truncated_ && !options_.raw_keys) || std::memcmp(check.logits.data(), answer.logits.data(),
                                                         check.logits.size() * sizeof(float)) == 0);
  return absl::OkStatus();
}

}  // namespace turnkeep::llama
