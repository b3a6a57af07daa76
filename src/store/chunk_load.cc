// Loads: chunks on their way from disk to the host tier, shared by the restores that want
// them. Reads go out layer by layer over all chunks of a restore, so that layer i of
// every chunk is there before layer i + 1 of any.

#include <algorithm>
#include <utility>

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "core/units.h"
#include "store/restore_task.h"

namespace turnkeep {

using Kind = PlacementEvent::Kind;

namespace {

// Layers are grouped until a read has this size: what an NVMe drive needs to come near
// its bandwidth at a moderate depth.
constexpr uint64_t kMinReadBytes = 512 * kKiB;

}  // namespace

std::vector<ChunkLoad::Read> ChunkLoad::PlanReads(const ChunkGeometry& full,
                                                  const ChunkGeometry& geometry) {
  const auto layers = static_cast<uint32_t>(geometry.page_bytes.size());
  if (!full.pages_readable_alone || !geometry.pages_readable_alone) {
    return {{.offset = 0, .bytes = geometry.image_bytes, .first_layer = 0, .end_layer = layers}};
  }
  std::vector<Read> reads;
  for (uint32_t first = 0; first < layers;) {
    uint32_t end = first + 1;
    uint64_t bytes = full.page_bytes[first];
    while (end < layers && bytes < kMinReadBytes) bytes += full.page_bytes[end++];
    const uint64_t begin = first == 0 ? 0 : geometry.page_offset[first];
    const uint64_t stop = end == layers ? geometry.image_bytes : geometry.page_offset[end];
    reads.push_back(
        {.offset = begin, .bytes = stop - begin, .first_layer = first, .end_layer = end});
    first = end;
  }
  return reads;
}

std::shared_ptr<ChunkLoad> StoreImpl::JoinOrStartLoad(ChunkIndex chunk, RestoreJob* job) {
  if (const auto it = loads_.find(chunk); it != loads_.end()) {
    return it->second->failure.empty() ? it->second : nullptr;
  }
  const ChunkEntry& before = state_.catalog[chunk];
  const uint64_t slot_bytes = before.slot_blocks * kBlockBytes;
  const absl::StatusOr<SlotRef> slot = state_.AllocateSlot(before.tenant, slot_bytes);
  if (!slot.ok()) return nullptr;
  return StartLoad(chunk, *slot, job);
}

std::shared_ptr<ChunkLoad> StoreImpl::StartLoad(ChunkIndex chunk, SlotRef slot, RestoreJob* job) {
  ChunkEntry& entry = state_.catalog[chunk];
  const uint64_t slot_bytes = entry.slot_blocks * kBlockBytes;
  auto load = std::make_shared<ChunkLoad>();
  load->chunk = chunk;
  load->slot_bytes = slot_bytes;
  load->extent = entry.disk;
  load->layout = job->layout;
  load->target = {.id = entry.id,
                  .epoch = entry.epoch,
                  .root = entry.root,
                  .slot = slot,
                  .memory = state_.arena->Memory(slot),
                  .token_count = entry.token_count,
                  .geometry = &job->layout->Geometry(entry.token_count)};
  load->reads = ChunkLoad::PlanReads(job->layout->Geometry(job->layout->layout.chunk_tokens),
                                     job->layout->Geometry(entry.token_count));
  {
    absl::MutexLock lock(&load->verify_mu);
    load->read_done.resize(load->reads.size());
  }
  entry.loading = true;
  state_.AddOperationRef(chunk);
  state_.Notify(Kind::kDiskPinned, chunk);
  loads_.emplace(chunk, load);
  job->own_loads.push_back(load);
  for (const ChunkLoad::Read& read : load->reads) job->disk_bytes += read.bytes;
  return load;
}

void StoreImpl::LeaveLoad(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span) {
  std::erase_if(load->waiters,
                [&](const ChunkLoad::Waiter& w) { return w.job.get() == job && w.span == span; });
  if (!load->waiters.empty()) return;
  if (load->failure.empty()) load->failure = "abandoned";  // its reads stop: nobody may join
  if (load->in_flight == 0) EndLoad(load);
}

void StoreImpl::KeepSlot(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span) {
  load->keepers.push_back({job->shared_from_this(), span});
  job->span_states[span].kept = load;
}

void StoreImpl::DropSlot(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span) {
  std::erase_if(load->keepers,
                [&](const ChunkLoad::Waiter& k) { return k.job.get() == job && k.span == span; });
  if (load->keepers.empty() && load->ended) state_.ReleaseSlot(load->target.slot, load->slot_bytes);
}

void StoreImpl::EndLoad(const std::shared_ptr<ChunkLoad>& load) {
  TK_CHECK(load->in_flight == 0);
  if (const auto it = loads_.find(load->chunk); it == loads_.end() || it->second != load) return;
  const std::shared_ptr<ChunkLoad> keep = load;  // the map's may be the last but this
  loads_.erase(load->chunk);
  state_.catalog[load->chunk].loading = false;
  state_.Notify(Kind::kDiskUnpinned, load->chunk);
  load->ended = true;
  if (load->keepers.empty()) state_.ReleaseSlot(load->target.slot, load->slot_bytes);
  if (load->prefetch) state_.Notify(Kind::kPrefetchFailed, load->chunk);
  if (load->lost) state_.DropDamagedDisk(load->chunk, load->lost_reason);
  state_.DropOperationRef(load->chunk);
}

void StoreImpl::CompleteLoad(const std::shared_ptr<ChunkLoad>& load) {
  loads_.erase(load->chunk);
  state_.catalog[load->chunk].loading = false;
  state_.Notify(Kind::kDiskUnpinned, load->chunk);
  // Filling may begin a prefetch, which must not evict this before its restores have pinned it.
  state_.Notify(Kind::kHostPinned, load->chunk);
  state_.FillHost(load->chunk, load->target.slot);
  ++state_.counters.chunks_read;
  state_.counters.bytes_read += load->slot_bytes;
  // Who waited for it, and who was cut and only keeps its slot.
  for (std::vector<ChunkLoad::Waiter>* spans : {&load->waiters, &load->keepers}) {
    for (const ChunkLoad::Waiter& waiter : *spans) {
      RestoreJob::SpanState& span = waiter.job->span_states[waiter.span];
      state_.PinHost(load->chunk);
      span.host_pinned = true;
      span.load.reset();
      span.kept.reset();
    }
    spans->clear();
  }
  state_.Notify(Kind::kHostUnpinned, load->chunk);
  state_.DropOperationRef(load->chunk);
}

void StoreImpl::PumpReads(const std::shared_ptr<RestoreJob>& job) {
  std::vector<ExtentRead> batch;
  {
    absl::MutexLock lock(&state_.mu);
    const uint32_t limit = 2 * state_.options.io_depth;
    while (job->reads_in_flight < limit && !job->own_loads.empty()) {
      if (job->next_load == job->own_loads.size()) {
        job->next_load = 0;
        ++job->next_read;
      }
      const bool more =
          std::any_of(job->own_loads.begin(), job->own_loads.end(),
                      [&](const auto& load) { return job->next_read < load->reads.size(); });
      if (!more) {
        job->own_loads.clear();
        break;
      }
      const std::shared_ptr<ChunkLoad>& load = job->own_loads[job->next_load++];
      if (job->next_read >= load->reads.size() || !load->failure.empty() || load->waiters.empty())
        continue;
      ++load->in_flight;
      ++job->reads_in_flight;
      batch.push_back(MakeRead(job, load, job->next_read));
    }
  }
  SubmitReads(std::move(batch));
}

ExtentRead StoreImpl::MakeRead(const std::shared_ptr<RestoreJob>& job,
                               const std::shared_ptr<ChunkLoad>& load, size_t index) {
  const ChunkLoad::Read& read = load->reads[index];
  return {.ref = load->extent,
          .offset = read.offset,
          .buffer = load->target.memory.subspan(read.offset, read.bytes),
          .done = [this, job, load, index](const absl::Status& status, uint64_t) {
            boost::asio::post(*verifiers_, [this, job, load, index, status] {
              ReadEnded(job, load, index, status);
              // Last, because the destructor waits for it.
              absl::MutexLock lock(&state_.mu);
              --reads_running_;
            });
          }};
}

void StoreImpl::SubmitReads(std::vector<ExtentRead> batch) {
  if (batch.empty()) return;
  {
    absl::MutexLock lock(&state_.mu);
    reads_running_ += batch.size();
  }
  const absl::Status status = state_.disk.extents->ReadMany(batch);
  if (status.ok()) return;
  for (ExtentRead& read : batch) read.done(status, 0);
}

absl::Status StoreImpl::VerifyReads(ChunkLoad& load, size_t index, uint32_t* layers_ready) {
  absl::MutexLock lock(&load.verify_mu);
  load.read_done[index] = true;
  absl::Status status;
  while (load.verified_reads < load.reads.size() && load.read_done[load.verified_reads]) {
    const ChunkLoad::Read& read = load.reads[load.verified_reads];
    if (!load.header.has_value()) {
      absl::StatusOr<ChunkHeader> header = DecodeChunkHeader(load.target.memory, load.target.id,
                                                             load.target.epoch, load.target.root);
      if (!header.ok()) status = header.status();
      if (header.ok()) load.header = std::move(*header);
    }
    for (uint32_t layer = read.first_layer; status.ok() && layer < read.end_layer; ++layer) {
      status = VerifyPage(load.target.memory, load.layout->Geometry(load.target.token_count),
                          *load.header, layer);
    }
    if (!status.ok()) {
      load.read_done[load.verified_reads] = false;
      break;
    }
    ++load.verified_reads;
  }
  *layers_ready = load.verified_reads == 0 ? 0 : load.reads[load.verified_reads - 1].end_layer;
  return status;
}

void StoreImpl::ReadEnded(const std::shared_ptr<RestoreJob>& job,
                          const std::shared_ptr<ChunkLoad>& load, size_t index,
                          absl::Status status) {
  uint32_t layers_ready = 0;
  size_t damaged_read = index;
  if (status.ok()) {
    status = VerifyReads(*load, index, &layers_ready);
    absl::MutexLock lock(&load->verify_mu);
    if (!status.ok()) damaged_read = load->verified_reads;
  }
  // A damaged or failed read is tried once more: what comes back wrong from a good drive is
  // mostly right the second time, and what is really damaged stays so.
  if (!status.ok() && !absl::IsResourceExhausted(status)) {
    bool retry = false;
    {
      absl::MutexLock lock(&load->verify_mu);
      retry = !std::exchange(load->retried, true);
    }
    if (retry) {
      std::vector<ExtentRead> again;
      again.push_back(MakeRead(job, load, damaged_read));
      return SubmitReads(std::move(again));
    }
  }
  std::vector<std::shared_ptr<RestoreJob>> to_tell;
  {
    absl::MutexLock lock(&state_.mu);
    --load->in_flight;
    --job->reads_in_flight;
    if (status.ok()) CountRead(job.get(), load->reads[index].bytes);
    AdvanceLoad(load, layers_ready, status, &to_tell);
    for (const auto& told : to_tell) NoteFinished(told.get());
    writer_->WakeForWork();
  }
  PumpReads(job);
  for (const auto& told : to_tell) told->TellObserver();
}

void StoreImpl::CountRead(RestoreJob* job, uint64_t bytes) {
  job->read_bytes += bytes;
  if (job->read_bytes < job->disk_bytes) return;
  // A prefetch reads a chunk at a time: its rate is not that of a restore.
  if (job->prefetch) return;
  const int64_t now_ns = state_.NowNs();
  admission_.NoteRead(job->layout->number, job->read_bytes, now_ns - job->placed_ns, now_ns);
}

void StoreImpl::AdvanceLoad(const std::shared_ptr<ChunkLoad>& load, uint32_t layers_ready,
                            const absl::Status& status,
                            std::vector<std::shared_ptr<RestoreJob>>* to_tell) {
  for (const ChunkLoad::Waiter& waiter : load->waiters) to_tell->push_back(waiter.job);
  if (!status.ok() && load->failure.empty()) {
    load->failure = MessageOf(status);
    const bool passing = absl::IsResourceExhausted(status) || state_.closing;
    load->lost = !passing;
    load->lost_reason =
        absl::IsDataLoss(status) ? MissingReason::kDigestFailed : MissingReason::kReadFailed;
    const std::vector<ChunkLoad::Waiter> waiters = load->waiters;
    for (const ChunkLoad::Waiter& waiter : waiters) {
      waiter.job->CutAt(waiter.job->spans[waiter.span].token_begin,
                        std::string(NameOf(load->lost_reason)));
    }
  } else if (load->failure.empty() && layers_ready > load->layers_ready) {
    for (const ChunkLoad::Waiter& waiter : load->waiters) {
      waiter.job->LoadAdvanced(load->layers_ready, layers_ready);
    }
    load->layers_ready = layers_ready;
    if (layers_ready == load->layout->layout.layers.size()) return CompleteLoad(load);
  }
  if (load->in_flight == 0 && !load->failure.empty()) EndLoad(load);
}

}  // namespace turnkeep
