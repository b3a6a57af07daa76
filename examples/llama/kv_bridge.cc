#include "llama/kv_bridge.h"

#include <algorithm>
#include <utility>

#include <absl/time/clock.h>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {

// One run through the layers: each is waited for just before it is computed, and leaves right
// after.
class KvBridge::LayerPass : public LayerObserver {
 public:
  LayerPass(LayerRestore* restore, LayerSave* save, DeviceStream* compute, uint64_t start)
      : restore_(restore), save_(save), compute_(compute), start_(start) {}

  bool lost_tokens() const { return lost_tokens_; }
  double stall_s() const { return absl::ToDoubleSeconds(stall_); }
  // Of the device, in either direction.
  const absl::Status& restore_status() const { return restore_status_; }
  const absl::Status& save_status() const { return save_status_; }

  absl::Status BeforeLayer(uint32_t layer) override {
    if (restore_ == nullptr) return absl::OkStatus();
    const absl::Time begin = absl::Now();
    const absl::StatusOr<uint64_t> tokens = restore_->WaitLayer(layer, *compute_);
    restore_status_ = tokens.ok() ? compute_->Synchronize() : tokens.status();
    stall_ += absl::Now() - begin;
    if (restore_status_.ok() && *tokens >= start_) return absl::OkStatus();
    lost_tokens_ = true;
    return absl::AbortedError("restored tokens were lost");
  }
  void AfterLayer(uint32_t layer) override {
    if (save_ != nullptr && save_status_.ok())
      save_status_ = save_->LayerComputed(layer, *compute_);
  }

 private:
  LayerRestore* const restore_;
  LayerSave* const save_;
  DeviceStream* const compute_;
  const uint64_t start_;
  absl::Duration stall_;
  bool lost_tokens_ = false;
  absl::Status restore_status_;
  absl::Status save_status_;
};

KvBridge::KvBridge(KvStore* store, Engine* engine, Options options)
    : store_(store),
      engine_(engine),
      options_(std::move(options)),
      own_device_(options_.device == nullptr ? std::make_unique<KvDevice>() : nullptr),
      device_(options_.device == nullptr ? own_device_.get() : options_.device) {}

KvBridge::~KvBridge() { (void)Finish(); }

absl::Status KvBridge::BeginTurn(const Sequence& sequence) {
  kv_layout_ = LayoutOf(*engine_, sequence.cache()->options(), options_.chunk_tokens);
  layout_ = FingerprintOf(kv_layout_);
  saved_tokens_ = 0;
  spans_.clear();
  predicted_.reset();
  DevicePages* const pages = sequence.cache()->options().pages;
  if ((pages == nullptr ? nullptr : device_->pages()) != pages)
    return InvalidArgument("the cache's pages lie on another device than the bridge's");
  if (pages != nullptr) {
    TK_ASSIGN_OR_RETURN(compute_, pages->Stream());
    return absl::OkStatus();
  }
  if (own_compute_ == nullptr) {
    TK_ASSIGN_OR_RETURN(own_compute_, device_->device().NewStream());
  }
  compute_ = own_compute_.get();
  return absl::OkStatus();
}

absl::Status KvBridge::Greet() {
  TK_ASSIGN_OR_RETURN(layout_, store_->RegisterLayout(kv_layout_));
  const absl::StatusOr<SessionInfo> info = store_->StatSession(options_.session);
  if (!info.ok() && !absl::IsNotFound(info.status())) return info.status();
  generation_ = info.ok() ? info->generation : 0;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LayerMover>> KvBridge::MakeMover(const Sequence& sequence) const {
  return device_->side().make_mover(MoverOptionsOf(*engine_, kv_layout_, sequence));
}

absl::StatusOr<KvBridge::Report> KvBridge::Prefill(Sequence* sequence,
                                                   std::span<const uint32_t> context,
                                                   std::span<float> logits) {
  (void)Finish();
  if (context.empty()) return InvalidArgument("prefill: no tokens");
  TK_RETURN_IF_ERROR(sequence->Reserve(context.size()));
  TK_RETURN_IF_ERROR(BeginTurn(*sequence));
  BeginRestoring(*sequence, context);
  Report report;
  uint64_t start = 0;
  const absl::Status status = RunPasses(sequence, context, logits, &start, &report);
  EndRestore(start, &report);
  if (!status.ok()) {
    saving_.reset();
    return status;
  }
  report.computed_tokens = context.size() - start;
  report.miss_reason = miss_reason_;
  BeginCommit();
  return report;
}

// Restored tokens can be lost while layers are computed (damage, lateness, a killed
// daemon). The pass then starts again at the first lost token; each time with fewer, so
// it ends.
absl::Status KvBridge::RunPasses(Sequence* sequence, std::span<const uint32_t> context,
                                 std::span<float> logits, uint64_t* start, Report* report) {
  while (true) {
    *start = restore_ != nullptr ? restore_->token_count() : 0;
    if (usable_) BeginSave(*sequence, context);
    LayerPass pass(restore_.get(), saving_ ? saving_->save.get() : nullptr, compute_, *start);
    const absl::Time begin = absl::Now();
    const absl::Status status =
        engine_->Prefill(sequence, context.subspan(*start), *start, &pass, logits);
    report->stall_s = pass.stall_s();
    if (status.ok())
      device_->rates().Computed(context.size() - *start,
                                absl::ToDoubleSeconds(absl::Now() - begin) - pass.stall_s());
    if (!pass.save_status().ok()) {
      saving_.reset();
      SaveFailed(pass.save_status());
    }
    if (!pass.lost_tokens()) return status;
    saving_.reset();  // abandoned: its layers are about to be computed again
    ++report->restarts;
    if (!pass.restore_status().ok()) {
      miss_reason_ = MessageOf(pass.restore_status());
      options_.log(fmt::format("restore: {}", miss_reason_));
      restore_.reset();
    }
  }
}

// `tokens` of what was restored are used.
void KvBridge::EndRestore(uint64_t tokens, Report* report) {
  if (restore_ == nullptr) return;
  for (const RestoredSpan& span : restore_->spans()) {
    if (span.token_begin >= tokens) break;
    const uint64_t used = std::min<uint64_t>(span.token_count, tokens - span.token_begin);
    uint64_t& tokens_from = span.tier == Tier::kGpu    ? report->pooled_tokens
                            : span.tier == Tier::kDisk ? report->restored_disk_tokens
                                                       : report->restored_host_tokens;
    tokens_from += used;
  }
  report->predicted = predicted_;
  if (const auto moved = restore_->Report(); moved.ok()) {
    report->buffer_bytes = moved->buffer_bytes;
    device_->rates().Loaded(tokens - std::min(tokens, report->pooled_tokens), moved->copied_bytes,
                            moved->load_s);
  }
  const std::string trouble = restore_->trouble();
  if (!trouble.empty()) {
    options_.log("restore cut short: " + trouble);
    miss_reason_ = trouble;
  }
  restore_.reset();
}

std::optional<PooledContexts::Found> KvBridge::FindPooled(std::span<const uint32_t> context) const {
  const PagePool* const pool = device_->PoolFor(kv_layout_);
  if (pool == nullptr || context.size() < 2) return std::nullopt;
  // The last token is always computed: its logits are what the turn needs.
  return device_->ContextsOf(store_).Find(*pool, {.session = options_.session,
                                                  .layout = layout_,
                                                  .tokens = context,
                                                  .max_tokens = context.size() - 1});
}

void KvBridge::BeginRestoring(const Sequence& sequence, std::span<const uint32_t> context) {
  const std::optional<PooledContexts::Found> pooled = FindPooled(context);
  if (pooled && pooled->complete) {
    usable_ = true;
    generation_ = pooled->generation;
    miss_reason_ = pooled->token_count + 1 < context.size() ? "the session ends there" : "";
    return RestorePooled(sequence, *pooled, context.size());
  }
  const absl::Status greeted = Greet();
  usable_ = greeted.ok();
  if (!usable_) options_.log(fmt::format("no store: {}", MessageOf(greeted)));
  miss_reason_ = usable_ ? "" : "no store";
  HeldInPool held;  // until the restore has pins of its own
  if (pooled) held = HoldLeading(*device_->PoolFor(kv_layout_), pooled->spans);
  std::unique_ptr<RestoreTicket> ticket =
      usable_ && context.size() > 1 ? BeginLoad(context, held.chunks) : nullptr;
  const uint64_t stored = ticket == nullptr ? 0 : ticket->token_count();
  // With the store at hand, a truncated context counts as long as the session still shows it.
  const bool fits = pooled && (pooled->plain || !usable_ || pooled->generation == generation_);
  if (fits && pooled->token_count > stored) {
    ticket.reset();
    if (pooled->token_count + 1 == context.size()) miss_reason_.clear();
    return RestorePooled(sequence, *pooled, context.size());
  }
  if (ticket == nullptr) return;
  const absl::Status started = StartRestore(sequence, std::move(ticket), context.size());
  if (started.ok()) return;
  miss_reason_ = MessageOf(started);
  options_.log(fmt::format("restore: {}", miss_reason_));
  restore_.reset();
}

void KvBridge::RestorePooled(const Sequence& sequence, const PooledContexts::Found& found,
                             uint64_t context_tokens) {
  spans_ = found.spans;
  const absl::Status started = [&]() -> absl::Status {
    TK_ASSIGN_OR_RETURN(restore_mover_, MakeMover(sequence));
    TK_ASSIGN_OR_RETURN(restore_,
                        LayerRestore::StartPooled(device_->device(), kv_layout_, found.spans,
                                                  RestoreOptions(found.spans, context_tokens)));
    return restore_->Bind(*restore_mover_);
  }();
  if (started.ok()) return;
  miss_reason_ = MessageOf(started);
  options_.log(fmt::format("restore from the page pool: {}", miss_reason_));
  restore_.reset();
}

std::unique_ptr<RestoreTicket> KvBridge::BeginLoad(std::span<const uint32_t> context,
                                                   std::span<const ChunkId> held) {
  std::unique_ptr<RestoreTicket> ticket = BeginRestore(options_.session, context, held);
  if (ticket == nullptr) return nullptr;
  if (ticket->generation() != 0) generation_ = ticket->generation();
  miss_reason_ = ticket->miss_reason();
  if (ticket->token_count() == 0) {
    // Another session may have the same beginning.
    std::unique_ptr<RestoreTicket> by_tokens = BeginRestore("", context, held);
    if (by_tokens == nullptr || by_tokens->token_count() == 0) return nullptr;
    ticket = std::move(by_tokens);
    miss_reason_ = ticket->miss_reason();
  }
  return ticket;
}

std::optional<PipelineRates::Prediction> KvBridge::PredictRestore(const ContextSpans& spans,
                                                                  uint64_t context_tokens) const {
  const PagePool* const pool = device_->PoolFor(kv_layout_);
  const uint64_t tokens = TokensOf(spans);
  uint64_t to_load = 0;
  for (const ContextSpan& span : spans)
    if (pool == nullptr || !pool->Contains(span.chunk)) to_load += span.token_count;
  return device_->rates().Predict({.history_tokens = to_load,
                                   .new_tokens = context_tokens - tokens,
                                   .layers = engine_->model().config().layers,
                                   .budget_bytes = device_->options().restore_bytes});
}

LayerRestoreOptions KvBridge::RestoreOptions(const ContextSpans& spans, uint64_t context_tokens) {
  LayerRestoreOptions options{.buffer_bytes = device_->options().restore_bytes,
                              .max_tokens = context_tokens - 1,
                              .lanes = &device_->lanes(),
                              .pool = device_->PoolFor(kv_layout_)};
  predicted_ = PredictRestore(spans, context_tokens);
  if (predicted_.has_value()) options.buffer_bytes = predicted_->buffer_bytes;
  return options;
}

absl::Status KvBridge::StartRestore(const Sequence& sequence, std::unique_ptr<RestoreTicket> ticket,
                                    uint64_t context_tokens) {
  TK_ASSIGN_OR_RETURN(restore_mover_, MakeMover(sequence));
  const uint64_t tokens = std::min(ticket->token_count(), context_tokens - 1);
  spans_ = LeadingSpans(SpansOf(*ticket), tokens);
  const LayerRestoreOptions options = RestoreOptions(spans_, context_tokens);
  TK_ASSIGN_OR_RETURN(
      restore_, LayerRestore::Start(device_->device(), kv_layout_, std::move(ticket), options));
  return restore_->Bind(*restore_mover_);
}

std::unique_ptr<RestoreTicket> KvBridge::BeginRestore(const std::string& session,
                                                      std::span<const uint32_t> context,
                                                      std::span<const ChunkId> held) {
  absl::StatusOr<std::unique_ptr<RestoreTicket>> ticket =
      store_->BeginRestore({.session = session,
                            .prompt = {.tokens = context},
                            .layout = layout_,
                            .max_tokens = context.size() - 1,
                            .held_chunks = held,
                            .deadline = options_.restore_deadline});
  if (ticket.ok()) return std::move(*ticket);
  options_.log(fmt::format("restore: {}", MessageOf(ticket.status())));
  miss_reason_ = MessageOf(ticket.status());
  return nullptr;
}

void KvBridge::BeginSave(const Sequence& sequence, std::span<const uint32_t> context) {
  TK_CHECK(!saving_.has_value());
  absl::StatusOr<std::unique_ptr<SaveTicket>> ticket =
      store_->BeginSave({.session = options_.session,
                         .expected_generation = generation_,
                         .layout = layout_,
                         .prompt = {.tokens = context},
                         .space_deadline = options_.space_deadline});
  if (!ticket.ok()) return SaveFailed(ticket.status());
  if ((*ticket)->accepted_tokens() < context.size()) {
    options_.log(fmt::format("save: room for {} of {} tokens", (*ticket)->accepted_tokens(),
                             context.size()));
  }
  const absl::Status started = StartSave(sequence, context, std::move(*ticket));
  if (!started.ok()) SaveFailed(started);
}

absl::Status KvBridge::StartSave(const Sequence& sequence, std::span<const uint32_t> context,
                                 std::unique_ptr<SaveTicket> ticket) {
  Saving saving{.tokens = {context.begin(), context.end()}};
  spans_ = SpansOfSave(spans_, ticket->known_tokens(), ticket->chunks(), 0);
  TK_ASSIGN_OR_RETURN(saving.mover, MakeMover(sequence));
  const LayerSaveOptions options{.buffer_bytes = device_->options().restore_bytes,
                                 .lanes = &device_->lanes(),
                                 .pool = device_->PoolFor(kv_layout_)};
  TK_ASSIGN_OR_RETURN(saving.save, LayerSave::Start(device_->device(), kv_layout_,
                                                    std::move(ticket), *saving.mover, options));
  saving_ = std::move(saving);
  return absl::OkStatus();
}

void KvBridge::BeginCommit() {
  if (!saving_) return;
  const absl::Status begun = saving_->save->BeginCommit(options_.commit_deadline);
  if (begun.ok()) return;
  saving_.reset();
  SaveFailed(begun);
}

void KvBridge::Save(const Sequence& sequence, std::span<const uint32_t> context) {
  (void)Finish();
  if (!usable_ || context.empty()) return;
  BeginSave(sequence, context);
  if (!saving_) return;
  absl::Status status;
  for (uint32_t layer = 0; layer < engine_->model().config().layers; ++layer)
    status.Update(saving_->save->LayerComputed(layer, *compute_));
  if (status.ok()) return BeginCommit();
  saving_.reset();
  SaveFailed(status);
}

void KvBridge::SaveFailed(const absl::Status& status) {
  options_.log(fmt::format("save: {}", MessageOf(status)));
  device_->ContextsOf(store_).Doubt(options_.session);
  if (absl::IsFailedPrecondition(status)) {
    // Another writer has the session now. It is not overwritten; the next turn starts
    // from what is there.
    usable_ = false;
    return;
  }
  // The commit may have happened, and only its answer was lost.
  const absl::StatusOr<SessionInfo> info = store_->StatSession(options_.session);
  if (info.ok()) generation_ = info->generation;
}

absl::Status KvBridge::Finish() {
  if (!saving_) return absl::OkStatus();
  const absl::StatusOr<CommitResult> result = saving_->save->WaitCommitted();
  PooledContexts::Context context{.session = options_.session,
                                  .layout = layout_,
                                  .tokens = std::move(saving_->tokens),
                                  .spans = spans_};
  saving_.reset();
  ReportResidency();
  if (result.ok()) {
    generation_ = context.generation = result->generation;
    saved_tokens_ = result->token_count;
    context.tokens.resize(std::min<uint64_t>(context.tokens.size(), saved_tokens_));
    if (device_->PoolFor(kv_layout_) != nullptr)
      device_->ContextsOf(store_).Remember(std::move(context));
    return absl::OkStatus();
  }
  SaveFailed(result.status());
  return result.status();
}

void KvBridge::ReportResidency() {
  const PagePool* const pool = device_->PoolFor(kv_layout_);
  if (pool == nullptr) return;
  std::vector<GpuChunk> chunks;
  for (const PagePool::Chunk& chunk : pool->Residency())
    if (chunks.size() < kMaxGpuChunks) chunks.push_back({chunk.id, chunk.bytes});
  const absl::Status reported = store_->ReportGpuResidency(chunks);
  if (!reported.ok()) options_.log(fmt::format("page pool: {}", MessageOf(reported)));
}

absl::Status KvBridge::Truncate(Sequence* sequence, uint64_t token_count, uint64_t drop_begin,
                                uint64_t drop_end) {
  if (drop_begin > drop_end || drop_end > token_count) {
    return InvalidArgument("truncate: [{}, {}) of {} tokens", drop_begin, drop_end, token_count);
  }
  (void)Finish();
  absl::StatusOr<SessionInfo> info = FailedPrecondition(
      "truncate session \"{}\" to drop tokens [{}, {}): it has {} of this context's {}",
      options_.session, drop_begin, drop_end, saved_tokens_, token_count);
  if (usable_ && drop_end <= saved_tokens_) {
    info = store_->TruncateSession({.session = options_.session,
                                    .expected_generation = generation_,
                                    .drop_begin = drop_begin,
                                    .drop_end = drop_end});
  }
  const absl::Status moved = engine_->Truncate(sequence, token_count, drop_begin, drop_end);
  if (info.ok() && !moved.ok()) info = moved;
  usable_ = info.ok();
  if (!info.ok()) {
    device_->ContextsOf(store_).Forget(options_.session);
    options_.log(MessageOf(info.status()));
    return info.status();
  }
  generation_ = info->generation;
  device_->ContextsOf(store_).Truncate(options_.session, generation_, drop_begin, drop_end);
  spans_ = WithoutTokens(spans_, drop_begin, drop_end);
  saved_tokens_ -= drop_end - drop_begin;
  return absl::OkStatus();
}

}  // namespace turnkeep::llama
