#include "gpu_tier/layer_restore.h"

#include <algorithm>
#include <utility>

#include <absl/time/clock.h>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

LayerRestore::LayerRestore(Device& device, const KvLayout& layout,
                           std::unique_ptr<RestoreTicket> ticket, PagePool* pool)
    : device_(device), layout_(layout), ticket_(std::move(ticket)), pooled_(pool, layout_) {}

absl::StatusOr<std::unique_ptr<LayerRestore>> LayerRestore::Start(
    Device& device, const KvLayout& layout, std::unique_ptr<RestoreTicket> ticket,
    const LayerRestoreOptions& options) {
  auto restore = std::unique_ptr<LayerRestore>(
      new LayerRestore(device, layout, std::move(ticket), options.pool));
  const std::span<const RestoredSpan> spans = restore->ticket_->spans();
  restore->spans_.assign(spans.begin(), spans.end());
  for (const ContextSpan& span : SpansOf(*restore->ticket_)) restore->chunks_.push_back(span.chunk);
  const uint64_t tokens = std::min(restore->ticket_->token_count(), options.max_tokens);
  return Begin(std::move(restore), tokens, options);
}

absl::StatusOr<std::unique_ptr<LayerRestore>> LayerRestore::StartPooled(
    Device& device, const KvLayout& layout, const ContextSpans& spans,
    const LayerRestoreOptions& options) {
  if (options.pool == nullptr) return InvalidArgument("restore from a page pool: there is none");
  auto restore =
      std::unique_ptr<LayerRestore>(new LayerRestore(device, layout, nullptr, options.pool));
  for (const ContextSpan& span : spans) {
    restore->spans_.push_back({.token_begin = span.token_begin,
                               .token_count = span.token_count,
                               .first_in_chunk = span.first_in_chunk,
                               .chunk_token_count = span.chunk_token_count,
                               .stored_position = span.stored_position});
    restore->chunks_.push_back(span.chunk);
  }
  return Begin(std::move(restore), std::min(TokensOf(spans), options.max_tokens), options);
}

absl::StatusOr<std::unique_ptr<LayerRestore>> LayerRestore::Begin(
    std::unique_ptr<LayerRestore> restore, uint64_t tokens, const LayerRestoreOptions& options) {
  TK_RETURN_IF_ERROR(restore->Prepare(tokens, options));
  restore->loader_ = std::thread([r = restore.get()] { r->Run(); });
  return restore;
}

absl::Status LayerRestore::Prepare(uint64_t tokens, const LayerRestoreOptions& options) {
  while (!spans_.empty() && spans_.back().token_begin >= tokens) spans_.pop_back();
  const StagingRing::Options ring = RingFor(options);
  TK_ASSIGN_OR_RETURN(lane_, options.lanes != nullptr ? options.lanes->Take(ring)
                                                      : PipelineLanes::TakeOwn(device_, ring));
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    LayerMarks marks;
    TK_ASSIGN_OR_RETURN(marks.landed, device_.NewEvent());
    TK_ASSIGN_OR_RETURN(marks.before_wait, device_.NewEvent());
    TK_ASSIGN_OR_RETURN(marks.after_wait, device_.NewEvent());
    marks_.push_back(std::move(marks));
  }
  FindPooled();
  if (pooled_tokens_ >= tokens) {
    ticket_.reset();  // reads from disk that were begun for it stop
  } else if (ticket_ == nullptr) {
    tokens = pooled_tokens_;
  } else {
    MakeRoomInPool();
  }
  absl::MutexLock lock(&mu_);
  tokens_ = tokens;
  report_.buffer_bytes = lane_->ring.memory_bytes();
  return absl::OkStatus();
}

// The ring takes what the pool cannot.
StagingRing::Options LayerRestore::RingFor(const LayerRestoreOptions& options) const {
  StagingRing::Options ring{.budget_bytes = options.buffer_bytes,
                            .piece_bytes = options.piece_bytes};
  const size_t pool_slots = options.pool == nullptr ? 0 : options.pool->slot_count();
  for (size_t i = 0; i < spans_.size(); ++i) {
    for (const LayerSpec& layer : layout_.layers) {
      const uint64_t bytes = LayerPageBytes(layer, spans_[i].chunk_token_count);
      ring.largest_page_bytes = std::max(ring.largest_page_bytes, bytes);
      if (i >= pool_slots) ring.total_bytes += RoundUp(bytes, kStagedPageAlignment);
    }
  }
  return ring;
}

void LayerRestore::FindPooled() {
  pooled_.Resize(spans_.size());
  // From the last to the first, so that a prefix outlives what depends on it.
  for (size_t i = spans_.size(); i-- > 0;) {
    RestoredSpan& span = spans_[i];
    if (!pooled_.Find(i, chunks_[i], span.chunk_token_count, *lane_->second)) continue;
    span.tier = Tier::kGpu;
    span.stored_position = pooled_.position(i) + span.first_in_chunk;
  }
  for (size_t i = 0; i < spans_.size() && pooled_.found(i); ++i)
    pooled_tokens_ = spans_[i].token_begin + spans_[i].token_count;
}

// After FindPooled: making room for one must not push another of them out.
void LayerRestore::MakeRoomInPool() {
  for (size_t i = 0; i < spans_.size(); ++i) {
    const RestoredSpan& span = spans_[i];
    if (pooled_.found(i)) continue;
    pooled_.Insert(i, chunks_[i], span.chunk_token_count,
                   span.stored_position - span.first_in_chunk, *lane_->first);
  }
}

LayerRestore::~LayerRestore() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  if (loader_.joinable()) loader_.join();
  // Copies read the ticket's pages and write the ring and the pool: all stay until the streams are
  // empty. The pins go first, since an insertion that is given up records an event on its stream.
  if (lane_.holds()) {
    (void)lane_->first->Synchronize();
    (void)lane_->second->Synchronize();
  }
  pooled_.Clear();
  lane_.End();
}

uint64_t LayerRestore::token_count() const {
  absl::MutexLock lock(&mu_);
  return tokens_;
}

std::string LayerRestore::trouble() const {
  absl::MutexLock lock(&mu_);
  return report_.trouble;
}

void LayerRestore::Run() {
  const absl::Time start = absl::Now();
  RunLayers();
  (void)lane_->first->Synchronize();
  absl::MutexLock lock(&mu_);
  report_.load_s = absl::ToDoubleSeconds(absl::Now() - start) - blocked_s_;
  loaded_ = true;
}

void LayerRestore::RunLayers() {
  uint64_t tokens = token_count();
  const uint32_t layers = static_cast<uint32_t>(layout_.layers.size());
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (tokens > 0) {
      const auto loaded = LoadLayer(layer, WaitArrived(layer, tokens));
      if (!loaded.ok()) return Fail(loaded.status());
      tokens = *loaded;
    }
    {
      absl::MutexLock lock(&mu_);
      if (stop_) return;
      tokens_ = tokens;
    }
    if (layer + 1 == layers) {
      if (const absl::Status kept = KeepFilled(tokens); !kept.ok()) return Fail(kept);
    }
    Hand({.layer = layer, .end_of_layer = true, .tokens = tokens});
  }
}

uint64_t LayerRestore::WaitArrived(uint32_t layer, uint64_t tokens) {
  if (ticket_ == nullptr) return tokens;
  const absl::StatusOr<uint64_t> arrived = ticket_->WaitLayer(layer);
  const uint64_t there = arrived.ok() ? *arrived : 0;
  if (there >= tokens) return tokens;
  Trouble(fmt::format("layer {}: {} of {} tokens; {}", layer, there, tokens,
                      arrived.ok() ? ticket_->miss_reason() : MessageOf(arrived.status())));
  return std::min(tokens, std::max(there, pooled_tokens_));
}

absl::Status LayerRestore::KeepFilled(uint64_t tokens) {
  for (size_t i = spans_.size(); i-- > 0;) {
    if (spans_[i].token_begin < tokens && pooled_.filling(i))
      TK_RETURN_IF_ERROR(pooled_.Filled(i, *lane_->first));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> LayerRestore::LoadLayer(uint32_t layer, uint64_t tokens) {
  HandPooled(layer, tokens);
  std::vector<PageToMove> pages;
  for (size_t i = 0; i < spans_.size() && spans_[i].token_begin < tokens; ++i) {
    if (pooled_.found(i)) continue;
    pages.push_back({.index = i,
                     .bytes = LayerPageBytes(layout_.layers[layer], spans_[i].chunk_token_count),
                     .pooled = pooled_.filling(i)});
  }
  for (const MovedPiece& piece : CutIntoPieces(pages, lane_->ring.slot_bytes())) {
    TK_ASSIGN_OR_RETURN(const uint64_t right, LoadPiece(layer, piece, tokens));
    if (right < tokens) return right;
  }
  return tokens;
}

StagedPage LayerRestore::PageOf(size_t i, uint32_t layer, uint64_t tokens) const {
  const RestoredSpan& span = spans_[i];
  return {.bytes = LayerPageBytes(layout_.layers[layer], span.chunk_token_count),
          .token_begin = span.token_begin,
          .token_count = static_cast<uint32_t>(
              std::min<uint64_t>(span.token_count, tokens - span.token_begin)),
          .first_in_chunk = span.first_in_chunk,
          .chunk_token_count = span.chunk_token_count,
          .stored_position = span.stored_position};
}

void LayerRestore::HandPooled(uint32_t layer, uint64_t tokens) {
  Staged staged{.layer = layer};
  for (size_t i = 0; i < spans_.size() && spans_[i].token_begin < tokens; ++i) {
    if (!pooled_.found(i)) continue;
    staged.pages.push_back(PageOf(i, layer, tokens));
    staged.pages.back().data = pooled_.Page(i, layer);
    staged.bytes += staged.pages.back().bytes;
  }
  if (staged.pages.empty()) return;
  {
    absl::MutexLock lock(&mu_);
    report_.pooled_bytes += staged.bytes;
  }
  Hand(std::move(staged));
}

absl::Status LayerRestore::CopyPiece(std::span<const CopyRun> runs, Staged& staged) {
  DeviceStream& read = *lane_->first;
  if (staged.slot != nullptr) {
    TK_RETURN_IF_ERROR(read.WaitFor(*staged.slot->emptied));
    TK_RETURN_IF_ERROR(read.CopyBatch(CopyKind::kToDevice, runs));
    return read.Record(*staged.slot->filled);
  }
  TK_ASSIGN_OR_RETURN(staged.filled, device_.NewEvent());
  TK_RETURN_IF_ERROR(read.CopyBatch(CopyKind::kToDevice, runs));
  return read.Record(*staged.filled);
}

absl::StatusOr<uint64_t> LayerRestore::LoadPiece(uint32_t layer, const MovedPiece& piece,
                                                 uint64_t tokens) {
  Staged staged{.layer = layer, .bytes = piece.bytes};
  if (!piece.pooled) {
    staged.slot = TakeSlot();
    if (staged.slot == nullptr) return 0;
  }
  std::vector<CopyRun> runs;
  uint64_t at = 0;
  for (const size_t i : piece.pages) {
    StagedPage page = PageOf(i, layer, tokens);
    page.data = piece.pooled ? pooled_.Page(i, layer) : staged.slot->data + at;
    const std::span<const std::byte> source = ticket_->Page(i, layer);
    runs.push_back({page.data, source.data(), source.size()});
    staged.pages.push_back(page);
    at += RoundUp(page.bytes, kStagedPageAlignment);
  }
  TK_RETURN_IF_ERROR(CopyPiece(runs, staged));
  // Verified while the copy runs; what is wrong never reaches the engine's pages.
  for (size_t n = 0; n < piece.pages.size(); ++n) {
    const absl::Status verified = ticket_->VerifyPage(piece.pages[n], layer);
    if (verified.ok()) continue;
    const uint64_t begin = spans_[piece.pages[n]].token_begin;
    Trouble(fmt::format("layer {}, token {}: {}", layer, begin, MessageOf(verified)));
    staged.pages.resize(n);
    tokens = begin;
    break;
  }
  {
    absl::MutexLock lock(&mu_);
    report_.copied_bytes += at;
  }
  Hand(std::move(staged));
  return tokens;
}

StagingSlot* LayerRestore::TakeSlot() {
  absl::MutexLock lock(&mu_);
  const auto room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stop_ || !failure_.ok() || staged_slots_ < lane_->ring.slot_count();
  };
  if (!room()) {
    const absl::Time begin = absl::Now();
    mu_.Await(absl::Condition(&room));
    blocked_s_ += absl::ToDoubleSeconds(absl::Now() - begin);
  }
  return stop_ || !failure_.ok() ? nullptr : &lane_->ring.Next();
}

void LayerRestore::Hand(Staged staged) {
  {
    absl::MutexLock lock(&mu_);
    if (staged.slot != nullptr) {
      ++staged_slots_;
      staged_bytes_ += staged.bytes;
      if (mover_ == nullptr)
        report_.buffered_bytes = std::max(report_.buffered_bytes, staged_bytes_);
    }
    staged_.push_back(std::move(staged));
  }
  Flush();
}

void LayerRestore::Flush() {
  for (;;) {
    Staged next;
    LayerMover* mover = nullptr;
    {
      absl::MutexLock lock(&mu_);
      if (flushing_ || mover_ == nullptr || staged_.empty() || !failure_.ok()) return;
      flushing_ = true;  // one thread at a time, so the order is kept
      mover = mover_;
      next = std::move(staged_.front());
      staged_.pop_front();
    }
    const absl::Status status = Scatter(*mover, next);
    absl::MutexLock lock(&mu_);
    flushing_ = false;
    if (!status.ok()) failure_.Update(status);
    if (next.slot != nullptr) {
      --staged_slots_;
      staged_bytes_ -= next.bytes;
    }
    if (next.end_of_layer) enqueued_layers_ = next.layer + 1;
  }
}

absl::Status LayerRestore::Scatter(LayerMover& mover, const Staged& staged) {
  DeviceStream& scatter = *lane_->second;
  if (staged.end_of_layer) {
    marks_[staged.layer].tokens = staged.tokens;
    return scatter.Record(*marks_[staged.layer].landed);
  }
  if (staged.slot != nullptr) TK_RETURN_IF_ERROR(scatter.WaitFor(*staged.slot->filled));
  if (staged.filled != nullptr) TK_RETURN_IF_ERROR(scatter.WaitFor(*staged.filled));
  if (!staged.pages.empty()) TK_RETURN_IF_ERROR(mover.Scatter(scatter, staged.layer, staged.pages));
  return staged.slot == nullptr ? absl::OkStatus() : scatter.Record(*staged.slot->emptied);
}

absl::Status LayerRestore::Bind(LayerMover& mover, const DeviceEvent* after) {
  if (after != nullptr) TK_RETURN_IF_ERROR(lane_->second->WaitFor(*after));
  {
    absl::MutexLock lock(&mu_);
    if (mover_ != nullptr) return FailedPrecondition("bind: the restore has its pages already");
    mover_ = &mover;
  }
  Flush();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> LayerRestore::WaitLayer(uint32_t layer, DeviceStream& compute) {
  if (layer >= marks_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, marks_.size());
  {
    absl::MutexLock lock(&mu_);
    if (mover_ == nullptr) return FailedPrecondition("wait for layer {}: not bound yet", layer);
    const auto there = [this, layer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return enqueued_layers_ > layer || !failure_.ok();
    };
    mu_.Await(absl::Condition(&there));
    if (!failure_.ok()) return failure_;
  }
  LayerMarks& marks = marks_[layer];
  TK_RETURN_IF_ERROR(compute.Record(*marks.before_wait));
  TK_RETURN_IF_ERROR(compute.WaitFor(*marks.landed));
  TK_RETURN_IF_ERROR(compute.Record(*marks.after_wait));
  return marks.tokens;
}

absl::StatusOr<LayerRestoreReport> LayerRestore::Report() const {
  std::vector<double> stalls_s;
  for (const LayerMarks& marks : marks_) {
    TK_ASSIGN_OR_RETURN(const double stall_s,
                        device_.SecondsBetween(*marks.before_wait, *marks.after_wait));
    stalls_s.push_back(stall_s);
  }
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(&loaded_));
  LayerRestoreReport report = report_;
  for (const double stall_s : stalls_s) report.stall_s += stall_s;
  report.layer_stall_s = std::move(stalls_s);
  return report;
}

void LayerRestore::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  failure_.Update(status);
}

void LayerRestore::Trouble(const std::string& what) {
  absl::MutexLock lock(&mu_);
  if (report_.trouble.empty()) report_.trouble = what;
}

}  // namespace turnkeep
