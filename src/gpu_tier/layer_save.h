// A save that overlaps the engine's compute (CachedAttention §3.2): each layer leaves the engine's
// pages as soon as it is computed, and the job after next never waits for the link.
//
//   the engine's pages -> write buffer   on the gather stream, after the layer's compute
//   write buffer -> the ticket's pages   on the copy stream
//   digests (SaveTicket::FinishLayer)    on a thread of this object
//
// The next job may overwrite the engine's pages once they are gathered, however much of the
// write buffer is still on the link: LetReuse. A write buffer smaller than the KV makes the
// last gathers wait for copies.
//
// With a page pool, chunks are gathered into it instead of into the write buffer as long as it has
// room, and stay there for the next turn once all their layers were given, whether the save is
// committed or not: a chunk's id says what is in it.
//
// Thread-safety: one owner; all methods on one thread.
//
//   TK_ASSIGN_OR_RETURN(auto save, LayerSave::Start(device, layout, std::move(ticket), mover, {}));
//   for (uint32_t layer = 0; layer < layers; ++layer) {
//     LaunchLayer(layer, *compute);
//     TK_RETURN_IF_ERROR(save->LayerComputed(layer, *compute));
//   }
//   TK_RETURN_IF_ERROR(save->LetReuse(*compute));   // does not block this thread
//   … the next job …
//   TK_ASSIGN_OR_RETURN(CommitResult done, save->Commit(absl::Seconds(5)));
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>

#include "core/kv_store.h"
#include "core/units.h"
#include "gpu_tier/device.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/pipeline_lanes.h"
#include "gpu_tier/pooled_chunks.h"
#include "gpu_tier/staging_ring.h"

namespace turnkeep {

struct LayerSaveOptions {
  uint64_t buffer_bytes = 64 * kMiB;  // device memory of the write buffer, see StagingRing
  uint64_t piece_bytes = 4 * kMiB;    // of one copy
  PipelineLanes* lanes =
      nullptr;                  // streams and write buffer are taken from; null: made for this one
  PagePool* pool = nullptr;     // of the same device
  int64_t position_offset = 0;  // SaveRequest::position_offset
};

class LayerSave {
 public:
  // `device` and `mover` outlive this. ResourceExhausted: no room for the buffer.
  static absl::StatusOr<std::unique_ptr<LayerSave>> Start(Device& device, const KvLayout& layout,
                                                          std::unique_ptr<SaveTicket> ticket,
                                                          LayerMover& mover,
                                                          const LayerSaveOptions& options);
  // Waits for what is in flight; without Commit the save vanishes.
  ~LayerSave();
  LayerSave(const LayerSave&) = delete;
  LayerSave& operator=(const LayerSave&) = delete;

  const SaveTicket& ticket() const { return *ticket_; }

  // All that `compute` has been given so far writes `layer`; from its end on the layer is saved.
  // Does not block. Each layer once, in any order.
  absl::Status LayerComputed(uint32_t layer, DeviceStream& compute);

  // Later work of `stream` waits until every layer given so far has left the engine's pages.
  absl::Status LetReuse(DeviceStream& stream);

  // Blocks until every layer given so far is in the ticket's pages: what an engine that does not
  // overlap would wait for.
  absl::Status WaitUntilArrived() { return lane_->second->Synchronize(); }

  // Commits once the layers have arrived and have their digests, on this object's thread; does not
  // block. From then on the destructor waits for the commit. FailedPrecondition: a layer was not
  // given, or it was called before.
  absl::Status BeginCommit(absl::Duration deadline) ABSL_LOCKS_EXCLUDED(mu_);
  // Blocks until the commit is through. Only after BeginCommit. DeadlineExceeded also where the
  // layers have not arrived by its deadline; the save then vanishes.
  absl::StatusOr<CommitResult> WaitCommitted() ABSL_LOCKS_EXCLUDED(mu_);
  // Both.
  absl::StatusOr<CommitResult> Commit(absl::Duration deadline) {
    if (absl::Status begun = BeginCommit(deadline); !begun.ok()) return begun;
    return WaitCommitted();
  }

  uint64_t buffer_bytes() const { return lane_->ring.memory_bytes(); }

 private:
  LayerSave(Device& device, const KvLayout& layout, std::unique_ptr<SaveTicket> ticket,
            LayerMover& mover, PagePool* pool);
  absl::Status Prepare(const LayerSaveOptions& options);
  StagingRing::Options RingFor(const LayerSaveOptions& options) const;
  absl::Status SavePiece(uint32_t layer, const MovedPiece& piece);
  absl::Status CopyPiece(std::span<const CopyRun> runs, DeviceEvent& filled);
  absl::Status KeepFilled();
  void Finish() ABSL_LOCKS_EXCLUDED(mu_);
  void RunCommit() ABSL_LOCKS_EXCLUDED(mu_);

  const KvLayout layout_;
  Device& device_;
  LayerMover& mover_;
  std::unique_ptr<SaveTicket> ticket_;
  LaneLease lane_;  // first: gather, second: copy
  PooledChunks pooled_;
  std::unique_ptr<DeviceEvent> computed_;
  std::unique_ptr<DeviceEvent> gathered_;
  std::vector<std::unique_ptr<DeviceEvent>> arrived_;  // by layer

  absl::Mutex mu_;
  std::deque<uint32_t> to_finish_ ABSL_GUARDED_BY(mu_);  // at most one entry a layer
  uint32_t given_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t finished_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool commit_ ABSL_GUARDED_BY(mu_) = false;      // asked for
  bool given_up_ ABSL_GUARDED_BY(mu_) = false;    // its deadline passed before it could begin
  bool committing_ ABSL_GUARDED_BY(mu_) = false;  // the ticket is asked
  bool committed_ ABSL_GUARDED_BY(mu_) = false;   // result_ is there
  absl::Time until_ ABSL_GUARDED_BY(mu_);
  absl::StatusOr<CommitResult> result_ ABSL_GUARDED_BY(mu_);
  std::thread finisher_;
};

}  // namespace turnkeep
