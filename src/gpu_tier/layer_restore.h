// A restore that overlaps the engine's compute (CachedAttention §3.2): while layer i computes,
// layer i + 1 is copied to the device and layer i + 2 is read from disk.
//
//   disk -> host   the store, in layer order (RestoreTicket::WaitLayer)
//   host -> read buffer, on the read stream, page by page out of the arena, which is
//                  verified meanwhile
//   read buffer -> the engine's pages, on the scatter stream, only what was verified
//   the engine's compute stream waits for the layer's event; no thread of the engine waits for a
//   copy
//
// Loading begins at Start, before the job that needs it runs and has pages: until Bind everything
// stays in the read buffer, as much as its budget holds. Where loading is slower than computing
// that head start is what hides the difference; read_buffer.h says how much is needed.
//
// With a page pool, chunks that are in it are not copied, and the others are loaded into it
// instead of into the read buffer, as long as it has room; they stay when every page of them was
// verified. The store does not read those from disk that the request named (HoldLeading,
// RestoreRequest::held_chunks). Where all of them were in the pool the ticket is released at Start.
// StartPooled restores from the pool alone and has no ticket: an engine that remembers which chunks
// a context is made of (pooled_contexts.h) need not ask the store for what it has.
//
// Thread-safety: one owner; Bind, WaitLayer and the destructor on one thread.
//
//   TK_ASSIGN_OR_RETURN(auto restore, LayerRestore::Start(device, layout, std::move(ticket), {}));
//   … the job before ends, pages are allocated …
//   TK_RETURN_IF_ERROR(restore->Bind(mover));
//   for (uint32_t layer = 0; layer < layers; ++layer) {
//     TK_ASSIGN_OR_RETURN(uint64_t tokens, restore->WaitLayer(layer, *compute));
//     LaunchLayer(layer, *compute);
//   }
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>

#include "core/kv_store.h"
#include "core/units.h"
#include "gpu_tier/context_spans.h"
#include "gpu_tier/device.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/pipeline_lanes.h"
#include "gpu_tier/pooled_chunks.h"
#include "gpu_tier/staging_ring.h"

namespace turnkeep {

struct LayerRestoreOptions {
  uint64_t buffer_bytes = 64 * kMiB;  // device memory of the read buffer, see StagingRing
  uint64_t piece_bytes = 4 * kMiB;    // of one copy
  uint64_t max_tokens = kMaxSessionTokens;
  PipelineLanes* lanes =
      nullptr;               // streams and read buffer are taken from; null: made for this one
  PagePool* pool = nullptr;  // of the same device
};

struct LayerRestoreReport {
  uint64_t copied_bytes = 0;    // host to device
  uint64_t pooled_bytes = 0;    // of layer pages that were in the pool
  uint64_t buffered_bytes = 0;  // most that was waiting in the read buffer for Bind
  uint64_t buffer_bytes = 0;    // device memory of the read buffer
  double load_s = 0;            // from Start until the last copy, without waits for Bind
  double stall_s = 0;           // time that the compute stream waited at layers
  std::vector<double> layer_stall_s;
  std::string trouble;  // why fewer tokens came than were promised; empty: none
};

class LayerRestore {
 public:
  // Starts loading at once. `device` outlives this. ResourceExhausted: no room for the buffer.
  static absl::StatusOr<std::unique_ptr<LayerRestore>> Start(Device& device, const KvLayout& layout,
                                                             std::unique_ptr<RestoreTicket> ticket,
                                                             const LayerRestoreOptions& options);
  // The same for what the pool (not null) has of `spans`: ends before the first that it lacks.
  static absl::StatusOr<std::unique_ptr<LayerRestore>> StartPooled(
      Device& device, const KvLayout& layout, const ContextSpans& spans,
      const LayerRestoreOptions& options);
  // Stops after the layer that is being read, waits for what is in flight, and releases the ticket.
  ~LayerRestore();
  LayerRestore(const LayerRestore&) = delete;
  LayerRestore& operator=(const LayerRestore&) = delete;

  // What is restored, at most max_tokens of it; of tier kGpu where it was in the pool.
  std::span<const RestoredSpan> spans() const { return spans_; }
  // Why fewer tokens came than were promised, so far; empty: none.
  std::string trouble() const ABSL_LOCKS_EXCLUDED(mu_);

  // Tokens that may still be counted on; never grows.
  uint64_t token_count() const ABSL_LOCKS_EXCLUDED(mu_);

  // The engine has pages for token_count() tokens: what is buffered is scattered, and so is all
  // that follows. `mover` outlives this. Scattering waits for what `after` (may be null) has now:
  // the pages' last use by somebody else. Once.
  absl::Status Bind(LayerMover& mover, const DeviceEvent* after = nullptr) ABSL_LOCKS_EXCLUDED(mu_);

  // Makes later work of `compute` wait until `layer` is in the engine's pages. Blocks this thread
  // only until the layer has arrived in host memory. Returns for how many leading tokens this and
  // all earlier layers are in place; what lies behind is to be computed. An error: the device's.
  // Damage, lateness and a lost daemon only make the number smaller.
  absl::StatusOr<uint64_t> WaitLayer(uint32_t layer, DeviceStream& compute)
      ABSL_LOCKS_EXCLUDED(mu_);

  // After the compute stream has passed the last WaitLayer. FailedPrecondition before. May block
  // until the last copy has ended.
  absl::StatusOr<LayerRestoreReport> Report() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Pages in device memory, to be scattered, or the end of a layer.
  struct Staged {
    uint32_t layer = 0;
    StagingSlot* slot = nullptr;          // of the ring, or
    std::unique_ptr<DeviceEvent> filled;  // of places in the pool; neither: they were there before
    std::vector<StagedPage> pages;
    uint64_t bytes = 0;
    bool end_of_layer = false;
    uint64_t tokens = 0;  // end of a layer: what is in place
  };
  struct LayerMarks {
    std::unique_ptr<DeviceEvent> landed;
    std::unique_ptr<DeviceEvent> before_wait;
    std::unique_ptr<DeviceEvent> after_wait;
    uint64_t tokens = 0;  // valid once the layer counts in enqueued_layers_
  };

  LayerRestore(Device& device, const KvLayout& layout, std::unique_ptr<RestoreTicket> ticket,
               PagePool* pool);
  // Of the first `tokens` tokens of its spans.
  static absl::StatusOr<std::unique_ptr<LayerRestore>> Begin(std::unique_ptr<LayerRestore> restore,
                                                             uint64_t tokens,
                                                             const LayerRestoreOptions& options);
  absl::Status Prepare(uint64_t tokens, const LayerRestoreOptions& options);
  StagingRing::Options RingFor(const LayerRestoreOptions& options) const;
  void FindPooled();
  void MakeRoomInPool();
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  void RunLayers() ABSL_LOCKS_EXCLUDED(mu_);
  // Tokens below `tokens` for which the ticket, or the pool, has `layer`.
  uint64_t WaitArrived(uint32_t layer, uint64_t tokens);
  // Of the first `tokens` tokens.
  StagedPage PageOf(size_t span, uint32_t layer, uint64_t tokens) const;
  void HandPooled(uint32_t layer, uint64_t tokens);
  absl::Status KeepFilled(uint64_t tokens);
  // Copies, verifies and hands over one layer of the first `tokens` tokens; returns how many of
  // them are right.
  absl::StatusOr<uint64_t> LoadLayer(uint32_t layer, uint64_t tokens);
  absl::StatusOr<uint64_t> LoadPiece(uint32_t layer, const MovedPiece& piece, uint64_t tokens);
  absl::Status CopyPiece(std::span<const CopyRun> runs, Staged& staged);
  // The slot for the next piece, null when stopping. Blocks while all of them wait for Bind.
  StagingSlot* TakeSlot() ABSL_LOCKS_EXCLUDED(mu_);
  void Hand(Staged staged) ABSL_LOCKS_EXCLUDED(mu_);
  // Scatters what was handed over, on whichever thread comes first.
  void Flush() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Scatter(LayerMover& mover, const Staged& staged);
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Trouble(const std::string& what) ABSL_LOCKS_EXCLUDED(mu_);

  Device& device_;
  const KvLayout layout_;
  std::unique_ptr<RestoreTicket> ticket_;  // null when everything is in the pool
  LaneLease lane_;                         // first: read, second: scatter; the ring is the loader's
  PooledChunks pooled_;                    // the loader's
  std::vector<RestoredSpan> spans_;
  std::vector<ChunkId> chunks_;  // behind spans_
  uint64_t pooled_tokens_ = 0;   // leading ones
  std::vector<LayerMarks> marks_;

  mutable absl::Mutex mu_;
  uint64_t tokens_ ABSL_GUARDED_BY(mu_) = 0;
  LayerMover* mover_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::deque<Staged> staged_ ABSL_GUARDED_BY(mu_);  // bounded by the slots and layers
  size_t staged_slots_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t staged_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool flushing_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t enqueued_layers_ ABSL_GUARDED_BY(mu_) = 0;
  bool loaded_ ABSL_GUARDED_BY(mu_) = false;   // the loader has ended
  double blocked_s_ ABSL_GUARDED_BY(mu_) = 0;  // the loader waited for slots
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // the device's
  LayerRestoreReport report_ ABSL_GUARDED_BY(mu_);
  std::thread loader_;
};

}  // namespace turnkeep
