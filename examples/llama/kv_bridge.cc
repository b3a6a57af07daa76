#include "llama/kv_bridge.h"

#include <utility>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {

KvLayout LayoutOf(const Model& model, const Rope& rope, const PagedKvCache::Options& cache,
                  uint32_t chunk_tokens) {
  KvLayout layout;
  layout.model = model.name();
  layout.weights_revision = model.revision();
  layout.chunk_tokens = chunk_tokens;
  layout.rope = {.pairing = RopePairing::kAdjacent,
                 .rotary_dim = cache.head_dim,
                 .inv_freq = rope.inv_freq(),
                 .key_state = cache.keep_raw_keys ? KeyState::kRaw : KeyState::kRotated};
  layout.layers.assign(cache.layers, LayerSpec::Full(cache.kv_heads, cache.head_dim, cache.dtype));
  return layout;
}

// One run through the layers: holds each layer back until its restored part is there,
// and hands it to the saver afterwards.
class KvBridge::LayerPass : public LayerObserver {
 public:
  LayerPass(LayerLoader* loader, LayerSaver* saver, uint64_t start)
      : loader_(loader), saver_(saver), start_(start) {}

  bool lost_tokens() const { return lost_tokens_; }

  absl::Status BeforeLayer(uint32_t layer) override {
    if (loader_ == nullptr || loader_->Wait(layer) >= start_) return absl::OkStatus();
    lost_tokens_ = true;
    return absl::AbortedError("restored tokens were lost");
  }
  void AfterLayer(uint32_t layer) override {
    if (saver_ != nullptr) saver_->LayersReady(layer + 1);
  }

 private:
  LayerLoader* const loader_;
  LayerSaver* const saver_;
  const uint64_t start_;
  bool lost_tokens_ = false;
};

KvBridge::KvBridge(KvStore* store, Engine* engine, Options options)
    : store_(store), engine_(engine), options_(std::move(options)) {}

KvBridge::~KvBridge() { (void)Finish(); }

bool KvBridge::Greet(const Sequence& sequence) {
  const KvLayout layout = LayoutOf(engine_->model(), engine_->rope(), sequence.cache()->options(),
                                   options_.chunk_tokens);
  const absl::StatusOr<Fingerprint> registered = store_->RegisterLayout(layout);
  if (!registered.ok()) {
    options_.log(fmt::format("no store: {}", MessageOf(registered.status())));
    return false;
  }
  layout_ = *registered;
  const absl::StatusOr<SessionInfo> info = store_->StatSession(options_.session);
  if (!info.ok() && !absl::IsNotFound(info.status())) {
    options_.log(fmt::format("no store: {}", MessageOf(info.status())));
    return false;
  }
  generation_ = info.ok() ? info->generation : 0;
  saved_tokens_ = 0;
  return true;
}

absl::StatusOr<KvBridge::Report> KvBridge::Prefill(Sequence* sequence,
                                                   std::span<const uint32_t> context,
                                                   std::span<float> logits) {
  (void)Finish();
  if (context.empty()) return InvalidArgument("prefill: no tokens");
  TK_RETURN_IF_ERROR(sequence->Reserve(context.size()));
  usable_ = Greet(*sequence);
  miss_reason_ = usable_ ? "" : "no store";
  if (usable_) BeginLoad(*sequence, context);
  Report report;
  uint64_t start = 0;
  const absl::Status status = RunPasses(sequence, context, logits, &start, &report);
  if (loader_ != nullptr) {
    report.restored_host_tokens = loader_->TokensFrom(Tier::kHost, start);
    report.restored_disk_tokens = loader_->TokensFrom(Tier::kDisk, start);
    const std::string trouble = loader_->trouble();
    if (!trouble.empty()) {
      options_.log("restore cut short: " + trouble);
      miss_reason_ = trouble;
    }
    loader_.reset();
  }
  if (!status.ok()) {
    saver_.reset();
    return status;
  }
  report.computed_tokens = context.size() - start;
  report.miss_reason = miss_reason_;
  if (saver_ != nullptr) saver_->Commit(options_.commit_deadline);
  return report;
}

// Restored tokens can be lost while layers are computed (damage, lateness, a killed
// daemon). The pass then starts again at the first lost token; each time with fewer, so
// it ends.
absl::Status KvBridge::RunPasses(Sequence* sequence, std::span<const uint32_t> context,
                                 std::span<float> logits, uint64_t* start, Report* report) {
  while (true) {
    *start = loader_ != nullptr ? loader_->tokens() : 0;
    if (usable_) BeginSave(*sequence, context);
    LayerPass pass(loader_.get(), saver_.get(), *start);
    const absl::Status status =
        engine_->Prefill(sequence, context.subspan(*start), *start, &pass, logits);
    if (!pass.lost_tokens()) return status;
    saver_.reset();  // abandoned: its layers are about to be computed again
    ++report->restarts;
  }
}

// The last token is always computed: its logits are what the turn needs.
void KvBridge::BeginLoad(const Sequence& sequence, std::span<const uint32_t> context) {
  if (context.size() < 2) return;
  std::unique_ptr<RestoreTicket> ticket = BeginRestore(options_.session, context);
  if (ticket == nullptr) return;
  if (ticket->generation() != 0) generation_ = ticket->generation();
  miss_reason_ = ticket->miss_reason();
  if (ticket->token_count() == 0) {
    // Another session may have the same beginning.
    std::unique_ptr<RestoreTicket> shared = BeginRestore("", context);
    if (shared == nullptr || shared->token_count() == 0) return;
    ticket = std::move(shared);
    miss_reason_ = ticket->miss_reason();
  }
  loader_ = std::make_unique<LayerLoader>(engine_, sequence.table(), std::move(ticket),
                                          context.size() - 1);
}

std::unique_ptr<RestoreTicket> KvBridge::BeginRestore(const std::string& session,
                                                      std::span<const uint32_t> context) {
  absl::StatusOr<std::unique_ptr<RestoreTicket>> ticket =
      store_->BeginRestore({.session = session,
                            .prompt = {.tokens = context},
                            .layout = layout_,
                            .max_tokens = context.size() - 1,
                            .deadline = options_.restore_deadline});
  if (ticket.ok()) return std::move(*ticket);
  options_.log(fmt::format("restore: {}", MessageOf(ticket.status())));
  miss_reason_ = MessageOf(ticket.status());
  return nullptr;
}

void KvBridge::BeginSave(const Sequence& sequence, std::span<const uint32_t> context) {
  TK_CHECK(saver_ == nullptr);
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
  saver_ = std::make_unique<LayerSaver>(sequence.table(), std::move(*ticket));
}

void KvBridge::Save(const Sequence& sequence, std::span<const uint32_t> context) {
  (void)Finish();
  if (!usable_ || context.empty()) return;
  BeginSave(sequence, context);
  if (saver_ == nullptr) return;
  saver_->LayersReady(engine_->model().config().layers);
  saver_->Commit(options_.commit_deadline);
}

void KvBridge::SaveFailed(const absl::Status& status) {
  options_.log(fmt::format("save: {}", MessageOf(status)));
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
  if (saver_ == nullptr) return absl::OkStatus();
  const absl::StatusOr<CommitResult> result = saver_->Wait();
  saver_.reset();
  if (result.ok()) {
    generation_ = result->generation;
    saved_tokens_ = result->token_count;
    return absl::OkStatus();
  }
  SaveFailed(result.status());
  return result.status();
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
  engine_->Truncate(sequence, token_count, drop_begin, drop_end);
  usable_ = info.ok();
  if (!info.ok()) {
    options_.log(MessageOf(info.status()));
    return info.status();
  }
  generation_ = info->generation;
  saved_tokens_ -= drop_end - drop_begin;
  return absl::OkStatus();
}

}  // namespace turnkeep::llama
