// The disk writer: everything that goes from memory to the disk tier and the index.
//
// One thread takes chunks from StoreState::to_write, verifies their digests, gives them
// slots, writes them, (by durability) syncs, and then puts their records into the index, in
// that order. It deletes the index entries of given-up copies before their slots are free
// again. Session records go to the index as groups: a group is applied once every chunk
// it waits for is on disk, and groups of one session are applied in order.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <absl/status/status.h>
#include <absl/time/time.h>

#include "disk_tier/index_batch.h"
#include "store/state.h"

namespace turnkeep {

// How a persist ended. `index` is the fate of the session's record; `shortfall` says why
// a chunk could not be put on disk, empty if all were.
struct PersistResult {
  absl::Status index;
  std::string shortfall;
};

// A change of one session on its way to the index.
struct SessionChange {
  IndexBatch batch;
  // It replaces all that the index may hold of the session; otherwise it builds on the changes
  // before it.
  bool whole = true;
};

class DiskWriter {
 public:
  explicit DiskWriter(StoreState* state);
  // Lets running I/O end; what is queued is not written and its persists fail.
  ~DiskWriter();

  // Applies `change` after all of `chunks` are on disk and after earlier persists of the
  // same session. Once a change of a session has failed, those that build on it are refused
  // (Unavailable) until a whole one is in the index. `done` runs exactly once, on another thread or
  // (without a disk tier) inside the call, not under the lock in the first case. Called under the
  // store's lock, which it asserts.
  void Persist(uint64_t session, SessionChange change, std::span<const ChunkIndex> chunks,
               std::function<void(PersistResult)> done);
  // Whether the index lacks a failed change of the session: the next one must be whole. Under the
  // store's lock.
  bool IndexIsBehind(uint64_t session) const;

  // To be called after changes of the state that may have queued work, under the store's lock.
  // Wakes the writer only where there is some: to wake it for nothing costs microseconds.
  void WakeForWork() ABSL_LOCKS_EXCLUDED(wake_mu_);

  // Waits until nothing is queued or running; false if the deadline came first.
  bool WaitIdle(absl::Time deadline) ABSL_LOCKS_EXCLUDED(state_->mu);

  // Under the store's lock.
  uint64_t queued_chunks() const {
    state_->mu.AssertHeld();
    return state_->to_write.size() + running_jobs_;
  }

 private:
  struct Job;
  struct Group;
  using Jobs = std::vector<std::unique_ptr<Job>>;

  void Run();
  void Wake() ABSL_LOCKS_EXCLUDED(wake_mu_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu);
  Jobs TakeJobs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu);
  // The removals that may be applied now. `overwritten` gets the extents whose chunk has a newer
  // record in the index already.
  std::vector<DiskRemoval> TakeRemovals(std::vector<ExtentRef>* overwritten)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu);
  void ApplyRemovals(std::vector<DiskRemoval> removals, bool wait);
  void Write(Jobs jobs);
  absl::Status Verify(const Job& job);
  absl::Status FindSlot(Job& job);
  bool MakeRoom(uint64_t slot_bytes, int attempt);
  void SyncAndIndex(Jobs jobs);
  void PutRecords(std::shared_ptr<Jobs> jobs);
  void Finish(Jobs& jobs);
  void FinishOne(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu);
  void AdvanceGroups(uint64_t session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu);
  void ApplyGroup(std::shared_ptr<Group> group);

  StoreState* const state_;

  // Guarded by state_->mu.
  absl::flat_hash_map<ChunkIndex, std::vector<std::shared_ptr<Group>>> waiting_for_
      ABSL_GUARDED_BY(state_->mu);
  absl::flat_hash_map<uint64_t, std::deque<std::shared_ptr<Group>>> groups_
      ABSL_GUARDED_BY(state_->mu);
  std::vector<std::shared_ptr<Group>> ready_ ABSL_GUARDED_BY(state_->mu);
  // Sessions with a change that failed, until a whole one is in the index.
  absl::flat_hash_set<uint64_t> behind_ ABSL_GUARDED_BY(state_->mu);
  // A chunk that a change has let go of keeps its record until that change is in the index: a
  // crash in between shows the session as it was. Every removal waits for the persists that
  // were begun before it, or with it.
  struct DeferredRemoval {
    DiskRemoval removal;
    uint64_t after_group = 0;
  };
  std::deque<DeferredRemoval> deferred_ ABSL_GUARDED_BY(state_->mu);
  std::set<uint64_t> unapplied_groups_ ABSL_GUARDED_BY(state_->mu);
  uint64_t next_group_ ABSL_GUARDED_BY(state_->mu) = 1;
  uint64_t running_jobs_ ABSL_GUARDED_BY(state_->mu) = 0;
  uint64_t running_bytes_ ABSL_GUARDED_BY(state_->mu) = 0;
  uint64_t running_index_ ABSL_GUARDED_BY(state_->mu) = 0;
  bool stopping_ ABSL_GUARDED_BY(state_->mu) = false;

  // Jobs whose payload write ended, from the device's thread.
  absl::Mutex wake_mu_ ABSL_ACQUIRED_AFTER(state_->mu);
  Jobs written_ ABSL_GUARDED_BY(wake_mu_);
  bool awake_ ABSL_GUARDED_BY(wake_mu_) = false;

  std::thread thread_;
};

}  // namespace turnkeep
