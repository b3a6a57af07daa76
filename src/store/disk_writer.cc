#include "store/disk_writer.h"

#include <algorithm>
#include <utility>

#include <absl/synchronization/notification.h>
#include <spdlog/spdlog.h>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

namespace {

using Kind = PlacementEvent::Kind;

constexpr size_t kJobsPerRound = 256;
constexpr uint64_t kBytesPerRound = 32 * kMiB;
// Payload under way at once: enough for the device's depth, little enough to keep
// latency bounded. One chunk is always allowed.
constexpr uint64_t kMaxRunningBytes = 96 * kMiB;
constexpr int kMaxRoomAttempts = 64;
// From this attempt on, a whole file of another size class is emptied.
constexpr int kEmptyFileAttempt = 8;

}  // namespace

struct DiskWriter::Job {
  ChunkIndex chunk = kNoChunk;
  ChunkRecord record;
  std::span<std::byte> image;
  const LayoutInfo* layout = nullptr;
  bool needed = true;
  bool digest_failed = false;
  bool slot_unusable = false;  // the slot must not be used again
  absl::Status status;

  uint64_t bytes() const { return record.slot_blocks * kBlockBytes; }
};

struct DiskWriter::Group {
  uint64_t number = 0;
  uint64_t session = 0;
  SessionChange change;
  uint32_t pending = 0;
  bool applying = false;
  std::string shortfall;
  std::function<void(PersistResult)> done;
};

DiskWriter::DiskWriter(StoreState* state) : state_(state) {
  if (state_->has_disk()) thread_ = std::thread([this] { Run(); });
}

DiskWriter::~DiskWriter() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&state_->mu);
    stopping_ = true;
  }
  Wake();
  thread_.join();
}

bool DiskWriter::IndexIsBehind(uint64_t session) const {
  state_->mu.AssertHeld();
  return behind_.contains(session);
}

void DiskWriter::Persist(uint64_t session, SessionChange change, std::span<const ChunkIndex> chunks,
                         std::function<void(PersistResult)> done) {
  state_->mu.AssertHeld();
  if (!state_->has_disk()) return done({.index = absl::OkStatus()});
  auto group = std::make_shared<Group>();
  group->number = next_group_++;
  unapplied_groups_.insert(group->number);
  group->session = session;
  group->change = std::move(change);
  group->done = std::move(done);
  for (const ChunkIndex chunk : chunks) {
    if (state_->placement.OnDisk(chunk)) continue;
    if (!state_->placement.Writing(chunk)) state_->Notify(Kind::kWriteWanted, chunk);
    if (!state_->placement.Writing(chunk)) {
      group->shortfall = "the disk tier has no room";
      continue;
    }
    waiting_for_[chunk].push_back(group);
    ++group->pending;
  }
  groups_[session].push_back(group);
  AdvanceGroups(session);
  Wake();
}

void DiskWriter::Wake() {
  absl::MutexLock lock(&wake_mu_);
  awake_ = true;
}

void DiskWriter::WakeForWork() {
  state_->mu.AssertHeld();
  if (HasWork()) Wake();
}

bool DiskWriter::WaitIdle(absl::Time deadline) {
  if (!thread_.joinable()) return true;
  Wake();
  absl::MutexLock lock(&state_->mu);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) {
    return !state_->WriterHasWork() && running_jobs_ == 0 && running_index_ == 0 &&
           groups_.empty() && deferred_.empty();
  };
  return state_->mu.AwaitWithDeadline(absl::Condition(&idle), deadline);
}

bool DiskWriter::HasWork() const {
  return !ready_.empty() || !state_->removals.empty() || !deferred_.empty() ||
         (!state_->to_write.empty() && (running_bytes_ == 0 || running_bytes_ < kMaxRunningBytes));
}

void DiskWriter::Run() {
  for (;;) {
    Jobs written;
    {
      absl::MutexLock lock(&wake_mu_);
      wake_mu_.Await(absl::Condition(&awake_));
      awake_ = false;
      written.swap(written_);
    }
    if (!written.empty()) SyncAndIndex(std::move(written));
    Jobs jobs;
    std::vector<DiskRemoval> removals;
    std::vector<ExtentRef> overwritten;
    std::vector<std::shared_ptr<Group>> ready;
    {
      absl::MutexLock lock(&state_->mu);
      if (stopping_) {
        if (running_jobs_ == 0 && running_index_ == 0) break;
        continue;
      }
      if (!HasWork()) continue;
      removals = TakeRemovals(&overwritten);
      ready.swap(ready_);
      jobs = TakeJobs();
      if (!state_->to_write.empty()) Wake();
    }
    for (const ExtentRef extent : overwritten) state_->disk.extents->Free(extent);
    if (!removals.empty()) ApplyRemovals(std::move(removals), /*wait=*/false);
    for (auto& group : ready) ApplyGroup(std::move(group));
    if (!jobs.empty()) Write(std::move(jobs));
  }
  // What never ran: its persists fail.
  std::vector<std::shared_ptr<Group>> left;
  {
    absl::MutexLock lock(&state_->mu);
    for (auto& [session, groups] : groups_) left.insert(left.end(), groups.begin(), groups.end());
    groups_.clear();
    waiting_for_.clear();
  }
  for (auto& group : left) group->done({.index = Unavailable("the store is closing")});
}

std::vector<DiskRemoval> DiskWriter::TakeRemovals(std::vector<ExtentRef>* overwritten) {
  for (const DiskRemoval& removal : state_->removals)
    deferred_.push_back({removal, next_group_ - 1});
  state_->removals.clear();
  std::vector<DiskRemoval> ready;
  std::deque<DeferredRemoval> left;
  for (; !deferred_.empty(); deferred_.pop_front()) {
    const DeferredRemoval& deferred = deferred_.front();
    if (!unapplied_groups_.empty() && *unapplied_groups_.begin() <= deferred.after_group) break;
    // The same chunk may have been saved again meanwhile.
    const ChunkIndex chunk = state_->catalog.Find(deferred.removal.id);
    if (chunk != kNoChunk && state_->placement.Writing(chunk)) {
      left.push_back(deferred);
    } else if (chunk != kNoChunk && !state_->catalog[chunk].disk.IsNull()) {
      overwritten->push_back(deferred.removal.extent);
    } else {
      ready.push_back(deferred.removal);
    }
  }
  deferred_.insert(deferred_.begin(), left.begin(), left.end());
  return ready;
}

DiskWriter::Jobs DiskWriter::TakeJobs() {
  Jobs jobs;
  uint64_t bytes = 0;
  auto& queue = state_->to_write;
  while (!queue.empty() && jobs.size() < kJobsPerRound && bytes < kBytesPerRound &&
         (running_bytes_ == 0 || running_bytes_ < kMaxRunningBytes)) {
    const ChunkIndex chunk = queue.front();
    queue.pop_front();
    const ChunkEntry& entry = state_->catalog[chunk];
    auto job = std::make_unique<Job>();
    job->chunk = chunk;
    job->needed = !entry.host.is_null() && !entry.host_damaged &&
                  (entry.session_refs > 0 || entry.operation_refs > 1);
    job->layout = state_->registry.LayoutAt(entry.layout);
    job->record = {.id = entry.id,
                   .parent = state_->catalog[entry.parent].id,
                   .layout = entry.layout,
                   .tenant = entry.tenant,
                   .token_count = entry.token_count,
                   .position_base = entry.position_base,
                   .epoch = entry.epoch,
                   .root = entry.root,
                   .slot_blocks = entry.slot_blocks,
                   .created_unix_s = entry.created_unix_s,
                   .last_used_unix_s = state_->UnixSeconds()};
    if (job->needed) job->image = state_->HostImage(entry);
    bytes += job->bytes();
    running_bytes_ += job->bytes();
    ++running_jobs_;
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void DiskWriter::ApplyRemovals(std::vector<DiskRemoval> removals, bool wait) {
  IndexBatch batch;
  for (const DiskRemoval& removal : removals) batch.DeleteChunk(removal.id);
  {
    absl::MutexLock lock(&state_->mu);
    ++running_index_;
  }
  auto shared = std::make_shared<std::vector<DiskRemoval>>(std::move(removals));
  auto finished = std::make_shared<absl::Notification>();
  const SyncMode sync =
      state_->options.durability == Durability::kSync ? SyncMode::kSync : SyncMode::kNoSync;
  const auto done = [this, shared, finished](const absl::Status& status) {
    // A slot whose entry may still be there stays out of use.
    for (const DiskRemoval& removal : *shared) {
      if (status.ok()) {
        state_->disk.extents->Free(removal.extent);
      } else {
        state_->disk.extents->Quarantine(removal.extent);
      }
    }
    absl::MutexLock lock(&state_->mu);
    if (!status.ok()) {
      ++state_->counters.index_errors;
      state_->Warn("index: " + MessageOf(status));
    }
    --running_index_;
    Wake();
    finished->Notify();
  };
  const absl::Status accepted = state_->disk.index->Apply(std::move(batch), sync, done);
  if (!accepted.ok()) done(accepted);
  if (wait) finished->WaitForNotification();
}

absl::Status DiskWriter::Verify(const Job& job) {
  TK_ASSIGN_OR_RETURN(
      const ChunkHeader header,
      DecodeChunkHeader(job.image, job.record.id, job.record.epoch, job.record.root));
  const ChunkGeometry& geometry = job.layout->Geometry(job.record.token_count);
  for (uint32_t layer = 0; layer < job.layout->layout.layers.size(); ++layer) {
    TK_RETURN_IF_ERROR(VerifyPage(job.image, geometry, header, layer));
  }
  return absl::OkStatus();
}

absl::Status DiskWriter::FindSlot(Job& job) {
  const WritePurpose purpose = state_->options.durability == Durability::kNone
                                   ? WritePurpose::kDemotion
                                   : WritePurpose::kDurability;
  for (int attempt = 0;; ++attempt) {
    absl::StatusOr<ExtentRef> extent = state_->disk.extents->Allocate(job.bytes(), purpose);
    if (extent.ok()) {
      job.record.extent = *extent;
      return absl::OkStatus();
    }
    if (!absl::IsResourceExhausted(extent.status()) || attempt == kMaxRoomAttempts ||
        !MakeRoom(job.bytes(), attempt)) {
      return extent.status();
    }
  }
}

bool DiskWriter::MakeRoom(uint64_t slot_bytes, int attempt) {
  std::vector<DiskRemoval> removals;
  const uint32_t file =
      attempt >= kEmptyFileAttempt ? state_->disk.extents->CheapestFileToEmpty(slot_bytes) : 0;
  {
    absl::MutexLock lock(&state_->mu);
    // Only what is evicted here goes at once; the rest waits its turn (TakeRemovals).
    std::vector<DiskRemoval> earlier;
    earlier.swap(state_->removals);
    if (file == 0) {
      state_->Notify(Kind::kDiskSpaceNeeded, kNoChunk, slot_bytes);
    } else {
      for (ChunkIndex i = 0; i < state_->catalog.end(); ++i) {
        const ChunkEntry& entry = state_->catalog[i];
        if (entry.in_use && entry.disk.file == file) state_->EvictFromDisk(i);
      }
    }
    removals.swap(state_->removals);
    state_->removals.swap(earlier);
  }
  if (removals.empty()) return false;
  ApplyRemovals(std::move(removals), /*wait=*/true);
  return true;
}

void DiskWriter::Write(Jobs jobs) {
  Jobs failed;
  std::vector<ExtentWrite> writes;
  std::vector<Job*> started;
  for (auto& job : jobs) {
    job->status = job->needed ? Verify(*job) : Unavailable("no longer needed");
    job->digest_failed = absl::IsDataLoss(job->status);
    if (job->status.ok()) job->status = FindSlot(*job);
    if (!job->status.ok()) {
      failed.push_back(std::move(job));
      continue;
    }
    Job* raw = job.release();
    started.push_back(raw);
    const uint64_t image_bytes = raw->layout->Geometry(raw->record.token_count).image_bytes;
    writes.push_back({.ref = raw->record.extent,
                      .image = raw->image.first(image_bytes),
                      .done = [this, raw](const absl::Status& status, uint64_t) {
                        raw->status = status;
                        raw->slot_unusable = !status.ok();
                        absl::MutexLock lock(&wake_mu_);
                        written_.emplace_back(raw);
                        awake_ = true;
                      }});
  }
  if (!failed.empty()) Finish(failed);
  if (writes.empty()) return;
  if (const absl::Status status = state_->disk.extents->WriteMany(writes); !status.ok()) {
    Jobs refused;
    for (Job* job : started) {
      job->status = status;
      refused.emplace_back(job);
    }
    Finish(refused);
  }
}

void DiskWriter::SyncAndIndex(Jobs jobs) {
  Jobs failed;
  auto good = std::make_shared<Jobs>();
  for (auto& job : jobs) (job->status.ok() ? *good : failed).push_back(std::move(job));
  if (!failed.empty()) Finish(failed);
  if (good->empty()) return;
  if (state_->options.durability != Durability::kSync) return PutRecords(good);
  std::vector<uint32_t> files;
  for (const auto& job : *good) files.push_back(job->record.extent.file);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  const auto synced = [this, good](const absl::Status& status) {
    if (status.ok()) return PutRecords(good);
    for (auto& job : *good) {
      job->status = status;
      job->slot_unusable = true;
    }
    Finish(*good);
  };
  if (const absl::Status status = state_->disk.extents->Sync(files, synced); !status.ok())
    synced(status);
}

void DiskWriter::PutRecords(std::shared_ptr<Jobs> jobs) {
  IndexBatch batch;
  for (const auto& job : *jobs) batch.PutChunk(job->record);
  const auto done = [this, jobs](const absl::Status& status) {
    for (auto& job : *jobs) {
      job->status = status;
      job->slot_unusable = !status.ok();
    }
    Finish(*jobs);
  };
  // The session's record, which follows, carries the sync for both.
  const absl::Status accepted =
      state_->disk.index->Apply(std::move(batch), SyncMode::kNoSync, done);
  if (!accepted.ok()) done(accepted);
}

void DiskWriter::Finish(Jobs& jobs) {
  for (const auto& job : jobs) {
    if (job->status.ok() || job->record.extent.IsNull()) continue;
    if (job->slot_unusable) {
      state_->disk.extents->Quarantine(job->record.extent);
    } else {
      state_->disk.extents->Free(job->record.extent);
    }
  }
  {
    absl::MutexLock lock(&state_->mu);
    for (const auto& job : jobs) FinishOne(*job);
    if (state_->on_room) state_->on_room();
    Wake();  // under the lock: once it is free, a closing writer may be gone
  }
}

void DiskWriter::FinishOne(Job& job) {
  ChunkEntry& entry = state_->catalog[job.chunk];
  --running_jobs_;
  running_bytes_ -= job.bytes();
  if (job.status.ok()) {
    entry.disk = job.record.extent;
    ++state_->counters.chunks_written;
    state_->counters.bytes_written += job.bytes();
    state_->Notify(Kind::kDiskWritten, job.chunk);
  } else {
    if (job.digest_failed) state_->DropDamagedHost(job.chunk);
    if (job.needed && !job.digest_failed) {
      const bool refused = absl::IsResourceExhausted(job.status);
      ++(refused ? state_->counters.disk_writes_refused : state_->counters.disk_write_errors);
      state_->Warn("disk: " + MessageOf(job.status));
      spdlog::warn("chunk {}: not written to disk: {}", job.record.id.ShortHex(),
                   MessageOf(job.status));
    }
    state_->Notify(Kind::kDiskWriteFailed, job.chunk);
    state_->SettleDamagedHost(job.chunk);
  }
  if (const auto it = waiting_for_.find(job.chunk); it != waiting_for_.end()) {
    std::vector<std::shared_ptr<Group>> groups = std::move(it->second);
    waiting_for_.erase(it);
    for (const auto& group : groups) {
      if (!job.status.ok() && job.needed) group->shortfall = MessageOf(job.status);
      --group->pending;
      AdvanceGroups(group->session);
    }
  }
  state_->DropOperationRef(job.chunk);
}

void DiskWriter::AdvanceGroups(uint64_t session) {
  const auto it = groups_.find(session);
  if (it == groups_.end() || it->second.empty()) return;
  const std::shared_ptr<Group>& front = it->second.front();
  if (front->pending > 0 || front->applying) return;
  front->applying = true;
  ready_.push_back(front);
}

void DiskWriter::ApplyGroup(std::shared_ptr<Group> group) {
  bool refused = false;
  {
    absl::MutexLock lock(&state_->mu);
    ++running_index_;
    refused = !group->change.whole && behind_.contains(group->session);
  }
  const SyncMode sync =
      state_->options.durability == Durability::kSync ? SyncMode::kSync : SyncMode::kNoSync;
  const auto done = [this, group](const absl::Status& status) {
    // The caller learns first, so that an idle writer has told everything.
    group->done({.index = status, .shortfall = group->shortfall});
    absl::MutexLock lock(&state_->mu);
    if (!status.ok()) {
      ++state_->counters.index_errors;
      state_->Warn("index: " + MessageOf(status));
      behind_.insert(group->session);
    } else if (group->change.whole) {
      behind_.erase(group->session);
    }
    unapplied_groups_.erase(group->number);
    const auto it = groups_.find(group->session);
    TK_CHECK(it != groups_.end() && it->second.front() == group);
    it->second.pop_front();
    if (it->second.empty()) {
      groups_.erase(it);
    } else {
      AdvanceGroups(group->session);
    }
    --running_index_;
    Wake();
  };
  if (refused) return done(Unavailable("an earlier change of the session is not in the index"));
  const absl::Status accepted =
      state_->disk.index->Apply(std::move(group->change.batch), sync, done);
  if (!accepted.ok()) done(accepted);
}

}  // namespace turnkeep
