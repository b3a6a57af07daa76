#include "gpu_tier/layer_restore.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

LayerRestore::LayerRestore(Device& device, const KvLayout& layout,
                           std::unique_ptr<RestoreTicket> ticket)
    : device_(device), layout_(layout), ticket_(std::move(ticket)) {}

absl::StatusOr<std::unique_ptr<LayerRestore>> LayerRestore::Start(
    Device& device, const KvLayout& layout, std::unique_ptr<RestoreTicket> ticket,
    const LayerRestoreOptions& options) {
  auto restore = std::unique_ptr<LayerRestore>(new LayerRestore(device, layout, std::move(ticket)));
  TK_RETURN_IF_ERROR(restore->Prepare(options));
  restore->loader_ = std::thread([r = restore.get()] { r->Run(); });
  return restore;
}

absl::Status LayerRestore::Prepare(const LayerRestoreOptions& options) {
  StagingRing::Options ring{.budget_bytes = options.buffer_bytes,
                            .piece_bytes = options.piece_bytes};
  for (const RestoredSpan& span : ticket_->spans()) {
    for (const LayerSpec& layer : layout_.layers) {
      const uint64_t bytes = LayerPageBytes(layer, span.chunk_token_count);
      ring.largest_page_bytes = std::max(ring.largest_page_bytes, bytes);
      ring.total_bytes += RoundUp(bytes, kStagedPageAlignment);
    }
  }
  TK_ASSIGN_OR_RETURN(ring_, StagingRing::Make(device_, ring));
  TK_ASSIGN_OR_RETURN(read_, device_.NewStream());
  TK_ASSIGN_OR_RETURN(scatter_, device_.NewStream());
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    LayerMarks marks;
    TK_ASSIGN_OR_RETURN(marks.landed, device_.NewEvent());
    TK_ASSIGN_OR_RETURN(marks.before_wait, device_.NewEvent());
    TK_ASSIGN_OR_RETURN(marks.after_wait, device_.NewEvent());
    marks_.push_back(std::move(marks));
  }
  absl::MutexLock lock(&mu_);
  tokens_ = std::min(ticket_->token_count(), options.max_tokens);
  report_.buffer_bytes = ring_.memory_bytes();
  return absl::OkStatus();
}

LayerRestore::~LayerRestore() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  if (loader_.joinable()) loader_.join();
  // Copies read the ticket's pages and write the ring: both stay until the streams are empty.
  read_.reset();
  scatter_.reset();
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
  uint64_t tokens = token_count();
  for (uint32_t layer = 0; layer < layout_.layers.size(); ++layer) {
    if (tokens > 0) {
      const auto arrived = ticket_->WaitLayer(layer);
      const uint64_t there = arrived.ok() ? *arrived : 0;
      if (there < tokens) {
        Trouble(fmt::format("layer {}: {} of {} tokens; {}", layer, there, tokens,
                            arrived.ok() ? ticket_->miss_reason() : MessageOf(arrived.status())));
      }
      const auto loaded = LoadLayer(layer, std::min(tokens, there));
      if (!loaded.ok()) return Fail(loaded.status());
      tokens = *loaded;
    }
    {
      absl::MutexLock lock(&mu_);
      if (stop_) return;
      tokens_ = tokens;
    }
    Hand({.layer = layer, .tokens = tokens});
  }
}

absl::StatusOr<uint64_t> LayerRestore::LoadLayer(uint32_t layer, uint64_t tokens) {
  std::vector<uint64_t> page_bytes;
  for (const RestoredSpan& span : ticket_->spans()) {
    if (span.token_begin >= tokens) break;
    page_bytes.push_back(LayerPageBytes(layout_.layers[layer], span.chunk_token_count));
  }
  for (const PieceRange& piece : CutIntoPieces(page_bytes, ring_.slot_bytes())) {
    TK_ASSIGN_OR_RETURN(const uint64_t right, LoadPiece(layer, piece, tokens));
    if (right < tokens) return right;
  }
  return tokens;
}

absl::StatusOr<uint64_t> LayerRestore::LoadPiece(uint32_t layer, const PieceRange& piece,
                                                 uint64_t tokens) {
  StagingSlot* const slot = TakeSlot();
  if (slot == nullptr) return 0;
  Staged staged{.layer = layer, .slot = slot, .bytes = piece.bytes};
  std::vector<CopyRun> runs;
  uint64_t at = 0;
  for (size_t i = piece.begin; i < piece.end; ++i) {
    const RestoredSpan& span = ticket_->spans()[i];
    const std::span<const std::byte> page = ticket_->Page(i, layer);
    runs.push_back({slot->data + at, page.data(), page.size()});
    staged.pages.push_back({.data = slot->data + at,
                            .bytes = page.size(),
                            .token_begin = span.token_begin,
                            .token_count = static_cast<uint32_t>(
                                std::min<uint64_t>(span.token_count, tokens - span.token_begin)),
                            .first_in_chunk = span.first_in_chunk,
                            .chunk_token_count = span.chunk_token_count,
                            .stored_position = span.stored_position});
    at += RoundUp(page.size(), kStagedPageAlignment);
  }
  TK_RETURN_IF_ERROR(read_->WaitFor(*slot->emptied));
  TK_RETURN_IF_ERROR(read_->CopyBatch(CopyKind::kToDevice, runs));
  TK_RETURN_IF_ERROR(read_->Record(*slot->filled));
  // Verified while the copy runs; what is wrong never reaches the engine's pages.
  for (size_t i = piece.begin; i < piece.end; ++i) {
    const absl::Status verified = ticket_->VerifyPage(i, layer);
    if (verified.ok()) continue;
    Trouble(fmt::format("layer {}, token {}: {}", layer, ticket_->spans()[i].token_begin,
                        MessageOf(verified)));
    staged.pages.resize(i - piece.begin);
    tokens = ticket_->spans()[i].token_begin;
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
    return stop_ || !failure_.ok() || staged_slots_ < ring_.slot_count();
  };
  mu_.Await(absl::Condition(&room));
  return stop_ || !failure_.ok() ? nullptr : &ring_.Next();
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
    } else {
      enqueued_layers_ = next.layer + 1;
    }
  }
}

absl::Status LayerRestore::Scatter(LayerMover& mover, const Staged& staged) {
  if (staged.slot == nullptr) {
    marks_[staged.layer].tokens = staged.tokens;
    return scatter_->Record(*marks_[staged.layer].landed);
  }
  TK_RETURN_IF_ERROR(scatter_->WaitFor(*staged.slot->filled));
  if (!staged.pages.empty())
    TK_RETURN_IF_ERROR(mover.Scatter(*scatter_, staged.layer, staged.pages));
  return scatter_->Record(*staged.slot->emptied);
}

absl::Status LayerRestore::Bind(LayerMover& mover, const DeviceEvent* after) {
  if (after != nullptr) TK_RETURN_IF_ERROR(scatter_->WaitFor(*after));
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
  LayerRestoreReport report;
  {
    absl::MutexLock lock(&mu_);
    report = report_;
  }
  for (const LayerMarks& marks : marks_) {
    TK_ASSIGN_OR_RETURN(const double stall_s,
                        device_.SecondsBetween(*marks.before_wait, *marks.after_wait));
    report.layer_stall_s.push_back(stall_s);
    report.stall_s += stall_s;
  }
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
