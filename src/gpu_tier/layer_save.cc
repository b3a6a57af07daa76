#include "gpu_tier/layer_save.h"

#include <algorithm>
#include <utility>

#include <absl/time/clock.h>

#include "core/status.h"

namespace turnkeep {

LayerSave::LayerSave(Device& device, const KvLayout& layout, std::unique_ptr<SaveTicket> ticket,
                     LayerMover& mover)
    : layout_(layout), device_(device), mover_(mover), ticket_(std::move(ticket)) {}

absl::StatusOr<std::unique_ptr<LayerSave>> LayerSave::Start(Device& device, const KvLayout& layout,
                                                            std::unique_ptr<SaveTicket> ticket,
                                                            LayerMover& mover,
                                                            const LayerSaveOptions& options) {
  auto save = std::unique_ptr<LayerSave>(new LayerSave(device, layout, std::move(ticket), mover));
  TK_RETURN_IF_ERROR(save->Prepare(options));
  save->finisher_ = std::thread([s = save.get()] { s->Finish(); });
  return save;
}

absl::Status LayerSave::Prepare(const LayerSaveOptions& options) {
  StagingRing::Options ring{.budget_bytes = options.buffer_bytes,
                            .piece_bytes = options.piece_bytes};
  for (const ChunkToSave& chunk : ticket_->chunks()) {
    for (const LayerSpec& layer : layout_.layers) {
      const uint64_t bytes = LayerPageBytes(layer, chunk.token_count);
      ring.largest_page_bytes = std::max(ring.largest_page_bytes, bytes);
      ring.total_bytes += RoundUp(bytes, kStagedPageAlignment);
    }
  }
  TK_ASSIGN_OR_RETURN(ring_, StagingRing::Make(device_, ring));
  TK_ASSIGN_OR_RETURN(gather_, device_.NewStream());
  TK_ASSIGN_OR_RETURN(copy_, device_.NewStream());
  TK_ASSIGN_OR_RETURN(computed_, device_.NewEvent());
  TK_ASSIGN_OR_RETURN(gathered_, device_.NewEvent());
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    TK_ASSIGN_OR_RETURN(auto event, device_.NewEvent());
    arrived_.push_back(std::move(event));
  }
  return absl::OkStatus();
}

LayerSave::~LayerSave() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  if (finisher_.joinable()) finisher_.join();
  // Copies write the ticket's pages and read the ring: both stay until the streams are empty.
  gather_.reset();
  copy_.reset();
}

absl::Status LayerSave::LayerComputed(uint32_t layer, DeviceStream& compute) {
  if (layer >= arrived_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, arrived_.size());
  TK_RETURN_IF_ERROR(compute.Record(*computed_));
  TK_RETURN_IF_ERROR(gather_->WaitFor(*computed_));
  std::vector<uint64_t> page_bytes;
  for (const ChunkToSave& chunk : ticket_->chunks())
    page_bytes.push_back(LayerPageBytes(layout_.layers[layer], chunk.token_count));
  for (const PieceRange& piece : CutIntoPieces(page_bytes, ring_.slot_bytes()))
    TK_RETURN_IF_ERROR(SavePiece(layer, piece));
  TK_RETURN_IF_ERROR(gather_->Record(*gathered_));
  TK_RETURN_IF_ERROR(copy_->Record(*arrived_[layer]));
  absl::MutexLock lock(&mu_);
  ++given_;
  to_finish_.push_back(layer);
  return absl::OkStatus();
}

absl::Status LayerSave::SavePiece(uint32_t layer, const PieceRange& piece) {
  StagingSlot& slot = ring_.Next();
  std::vector<StagedPage> pages;
  std::vector<CopyRun> runs;
  uint64_t at = 0;
  for (size_t i = piece.begin; i < piece.end; ++i) {
    const ChunkToSave& chunk = ticket_->chunks()[i];
    const std::span<std::byte> page = ticket_->Page(i, layer);
    pages.push_back({.data = slot.data + at,
                     .bytes = page.size(),
                     .token_begin = chunk.token_begin,
                     .token_count = chunk.token_count,
                     .chunk_token_count = chunk.token_count});
    runs.push_back({page.data(), slot.data + at, page.size()});
    at += RoundUp(page.size(), kStagedPageAlignment);
  }
  TK_RETURN_IF_ERROR(gather_->WaitFor(*slot.emptied));
  TK_RETURN_IF_ERROR(mover_.Gather(*gather_, layer, pages));
  TK_RETURN_IF_ERROR(gather_->Record(*slot.filled));
  TK_RETURN_IF_ERROR(copy_->WaitFor(*slot.filled));
  TK_RETURN_IF_ERROR(copy_->CopyBatch(CopyKind::kToHost, runs));
  return copy_->Record(*slot.emptied);
}

absl::Status LayerSave::LetReuse(DeviceStream& stream) { return stream.WaitFor(*gathered_); }

void LayerSave::Finish() {
  for (;;) {
    uint32_t layer = 0;
    bool commit = false;
    {
      absl::MutexLock lock(&mu_);
      const auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return stop_ || commit_ || !to_finish_.empty();
      };
      mu_.Await(absl::Condition(&work));
      if (stop_ && !commit_) return;
      commit = to_finish_.empty();
      if (!commit) {
        layer = to_finish_.front();
        to_finish_.pop_front();
      }
    }
    if (commit) return RunCommit();
    absl::Status status = arrived_[layer]->Wait();
    if (status.ok()) status = ticket_->FinishLayer(layer);
    absl::MutexLock lock(&mu_);
    failure_.Update(status);
    ++finished_;
  }
}

void LayerSave::RunCommit() {
  absl::Duration left;
  {
    absl::MutexLock lock(&mu_);
    left = until_ - absl::Now();
    if (failure_.ok() && (given_up_ || left <= absl::ZeroDuration()))
      failure_ =
          DeadlineExceeded("commit: the layers arrived {} late", absl::FormatDuration(-left));
    if (!failure_.ok()) {
      result_ = failure_;
      committed_ = true;
      return;
    }
    committing_ = true;
  }
  absl::StatusOr<CommitResult> result = ticket_->Commit(left);
  absl::MutexLock lock(&mu_);
  result_ = std::move(result);
  committed_ = true;
}

absl::Status LayerSave::BeginCommit(absl::Duration deadline) {
  absl::MutexLock lock(&mu_);
  if (commit_) return FailedPrecondition("commit: it was begun before");
  if (given_ != arrived_.size())
    return FailedPrecondition("commit: {} of {} layers are computed", given_, arrived_.size());
  until_ = absl::Now() + deadline;
  commit_ = true;
  return absl::OkStatus();
}

absl::StatusOr<CommitResult> LayerSave::WaitCommitted() {
  absl::MutexLock lock(&mu_);
  if (!commit_) return FailedPrecondition("commit: it was not begun");
  const auto begun = [this]()
                         ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return committing_ || committed_; };
  if (!mu_.AwaitWithDeadline(absl::Condition(&begun), until_)) {
    given_up_ = true;
    return DeadlineExceeded("commit: {} of {} layers have arrived", finished_, given_);
  }
  mu_.Await(absl::Condition(&committed_));
  return result_;
}

}  // namespace turnkeep
