#include "gpu_tier/layer_save.h"

#include <algorithm>
#include <utility>

#include <absl/time/clock.h>

#include "core/status.h"

namespace turnkeep {

LayerSave::LayerSave(Device& device, const KvLayout& layout, std::unique_ptr<SaveTicket> ticket,
                     LayerMover& mover, PagePool* pool)
    : layout_(layout),
      device_(device),
      mover_(mover),
      ticket_(std::move(ticket)),
      pooled_(pool, layout_) {}

absl::StatusOr<std::unique_ptr<LayerSave>> LayerSave::Start(Device& device, const KvLayout& layout,
                                                            std::unique_ptr<SaveTicket> ticket,
                                                            LayerMover& mover,
                                                            const LayerSaveOptions& options) {
  auto save = std::unique_ptr<LayerSave>(
      new LayerSave(device, layout, std::move(ticket), mover, options.pool));
  TK_RETURN_IF_ERROR(save->Prepare(options));
  save->finisher_ = std::thread([s = save.get()] { s->Finish(); });
  return save;
}

absl::Status LayerSave::Prepare(const LayerSaveOptions& options) {
  const StagingRing::Options ring = RingFor(options);
  TK_ASSIGN_OR_RETURN(lane_, options.lanes != nullptr ? options.lanes->Take(ring)
                                                      : PipelineLanes::TakeOwn(device_, ring));
  TK_ASSIGN_OR_RETURN(computed_, device_.NewEvent());
  TK_ASSIGN_OR_RETURN(gathered_, device_.NewEvent());
  for (size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    TK_ASSIGN_OR_RETURN(auto event, device_.NewEvent());
    arrived_.push_back(std::move(event));
  }
  const std::span<const ChunkToSave> chunks = ticket_->chunks();
  pooled_.Resize(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) {
    const int64_t position = static_cast<int64_t>(chunks[i].token_begin) + options.position_offset;
    pooled_.Insert(i, chunks[i].chunk, chunks[i].token_count, static_cast<uint64_t>(position),
                   *lane_->first);
  }
  return absl::OkStatus();
}

// The ring takes what the pool cannot.
StagingRing::Options LayerSave::RingFor(const LayerSaveOptions& options) const {
  StagingRing::Options ring{.budget_bytes = options.buffer_bytes,
                            .piece_bytes = options.piece_bytes};
  const std::span<const ChunkToSave> chunks = ticket_->chunks();
  const size_t pool_slots = options.pool == nullptr ? 0 : options.pool->slot_count();
  for (size_t i = 0; i < chunks.size(); ++i) {
    for (const LayerSpec& layer : layout_.layers) {
      const uint64_t bytes = LayerPageBytes(layer, chunks[i].token_count);
      ring.largest_page_bytes = std::max(ring.largest_page_bytes, bytes);
      if (i >= pool_slots) ring.total_bytes += RoundUp(bytes, kStagedPageAlignment);
    }
  }
  return ring;
}

LayerSave::~LayerSave() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  if (finisher_.joinable()) finisher_.join();
  // Copies write the ticket's pages and read the ring and the pool: all stay until the streams are
  // empty. The pins go first, since an insertion that is given up records an event on its stream.
  if (lane_.holds()) {
    (void)lane_->first->Synchronize();
    (void)lane_->second->Synchronize();
  }
  pooled_.Clear();
  lane_.End();
}

absl::Status LayerSave::LayerComputed(uint32_t layer, DeviceStream& compute) {
  if (layer >= arrived_.size())
    return InvalidArgument("layer {} of a layout of {}", layer, arrived_.size());
  TK_RETURN_IF_ERROR(compute.Record(*computed_));
  TK_RETURN_IF_ERROR(lane_->first->WaitFor(*computed_));
  std::vector<PageToMove> pages;
  const std::span<const ChunkToSave> chunks = ticket_->chunks();
  for (size_t i = 0; i < chunks.size(); ++i) {
    pages.push_back({.index = i,
                     .bytes = LayerPageBytes(layout_.layers[layer], chunks[i].token_count),
                     .pooled = pooled_.filling(i)});
  }
  for (const MovedPiece& piece : CutIntoPieces(pages, lane_->ring.slot_bytes()))
    TK_RETURN_IF_ERROR(SavePiece(layer, piece));
  TK_RETURN_IF_ERROR(lane_->first->Record(*gathered_));
  TK_RETURN_IF_ERROR(lane_->second->Record(*arrived_[layer]));
  bool last = false;
  {
    absl::MutexLock lock(&mu_);
    last = ++given_ == arrived_.size();
    to_finish_.push_back(layer);
  }
  return last ? KeepFilled() : absl::OkStatus();
}

absl::Status LayerSave::KeepFilled() {
  // From the last to the first: of chunks used at once, the pool gives up the last one first.
  for (size_t i = ticket_->chunks().size(); i-- > 0;)
    if (pooled_.filling(i)) TK_RETURN_IF_ERROR(pooled_.Filled(i, *lane_->first));
  return absl::OkStatus();
}

absl::Status LayerSave::SavePiece(uint32_t layer, const MovedPiece& piece) {
  StagingSlot* const slot = piece.pooled ? nullptr : &lane_->ring.Next();
  std::vector<StagedPage> pages;
  std::vector<CopyRun> runs;
  uint64_t at = 0;
  for (const size_t i : piece.pages) {
    const ChunkToSave& chunk = ticket_->chunks()[i];
    const std::span<std::byte> page = ticket_->Page(i, layer);
    std::byte* const staged = piece.pooled ? pooled_.Page(i, layer) : slot->data + at;
    pages.push_back({.data = staged,
                     .bytes = page.size(),
                     .token_begin = chunk.token_begin,
                     .token_count = chunk.token_count,
                     .chunk_token_count = chunk.token_count});
    runs.push_back({page.data(), staged, page.size()});
    at += RoundUp(page.size(), kStagedPageAlignment);
  }
  DeviceStream& gather = *lane_->first;
  if (slot != nullptr) TK_RETURN_IF_ERROR(gather.WaitFor(*slot->emptied));
  TK_RETURN_IF_ERROR(mover_.Gather(gather, layer, pages));
  if (slot != nullptr) {
    TK_RETURN_IF_ERROR(CopyPiece(runs, *slot->filled));
    return lane_->second->Record(*slot->emptied);
  }
  TK_ASSIGN_OR_RETURN(const auto filled, device_.NewEvent());
  return CopyPiece(runs, *filled);
}

absl::Status LayerSave::CopyPiece(std::span<const CopyRun> runs, DeviceEvent& filled) {
  DeviceStream& copy = *lane_->second;
  TK_RETURN_IF_ERROR(lane_->first->Record(filled));
  TK_RETURN_IF_ERROR(copy.WaitFor(filled));
  return copy.CopyBatch(CopyKind::kToHost, runs);
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
