// One restore (restore_path.cc), and the loads from disk that restores share (chunk_load.cc).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/chunk_header.h"
#include "store/store_impl.h"

namespace turnkeep {

class RestoreJob;

// A chunk on its way from disk to the host tier, in reads of a few layers each. The first
// restore that wants it submits the reads; later ones join. It becomes the host copy
// when every layer has been read and verified.
struct ChunkLoad {
  struct Read {
    uint64_t offset = 0;  // in the slot
    uint64_t bytes = 0;
    uint32_t first_layer = 0;
    uint32_t end_layer = 0;
  };
  struct Waiter {
    std::shared_ptr<RestoreJob> job;
    size_t span = 0;
  };

  // Constant.
  ChunkIndex chunk = kNoChunk;
  ChunkSlot target;
  uint64_t slot_bytes = 0;
  ExtentRef extent;
  const LayoutInfo* layout = nullptr;
  std::vector<Read> reads;
  bool prefetch = false;  // begun by a prefetch; restores may join it

  // Guarded by the store's lock.
  std::vector<Waiter> waiters;
  // Spans that were cut after layers of theirs had arrived: their engines may still be copying
  // those, so the slot is given back with the last of them (KeepSlot).
  std::vector<Waiter> keepers;
  bool ended = false;  // without completing
  uint32_t in_flight = 0;
  uint32_t layers_ready = 0;
  std::string failure;  // not empty: given up
  bool lost = false;    // the disk copy is to be dropped
  MissingReason lost_reason = MissingReason::kReadFailed;

  // Reads complete in any order and are verified in layer order.
  absl::Mutex verify_mu;
  std::optional<ChunkHeader> header ABSL_GUARDED_BY(verify_mu);
  std::vector<bool> read_done ABSL_GUARDED_BY(verify_mu);
  uint32_t verified_reads ABSL_GUARDED_BY(verify_mu) = 0;
  bool retried ABSL_GUARDED_BY(verify_mu) = false;

  static std::vector<Read> PlanReads(const ChunkGeometry& full, const ChunkGeometry& geometry);
};

// The state of one restore, shared by its operation and its running reads. Guarded by
// the store's lock where not said otherwise.
class RestoreJob : public std::enable_shared_from_this<RestoreJob> {
 public:
  RestoreJob(StoreImpl* store, const LayoutInfo* layout_info)
      : store_(store), layout(layout_info), pending_(layout_info->layout.layers.size()) {}

  StoreImpl* const store_;
  const LayoutInfo* const layout;
  uint64_t generation = 0;
  std::vector<RestoredSpan> spans;  // constant once the operation is out
  std::vector<ChunkSlot> slots;
  int64_t begun_ns = 0;
  int64_t placed_ns = 0;       // when every span had its place in the host tier
  uint64_t max_tokens = 0;     // of the request, as prompt_tokens
  uint64_t prompt_tokens = 0;  // 0: by session alone
  // Spans from here on are pinned where they lie and have neither host pin nor load of this
  // restore (StartLoads).
  size_t next_span = 0;

  struct SpanState {
    ChunkIndex chunk = kNoChunk;
    bool host_pinned = false;
    bool held = false;  // by the engine: neither pinned nor loaded
    bool settled() const { return host_pinned || held; }
    std::shared_ptr<ChunkLoad> load;
    std::shared_ptr<ChunkLoad> kept;  // after a cut: only its slot is held
  };
  std::vector<SpanState> span_states;
  std::vector<std::shared_ptr<ChunkLoad>> own_loads;  // whose reads it submits
  size_t next_load = 0;                               // layer-major cursor over own_loads
  size_t next_read = 0;
  uint32_t reads_in_flight = 0;
  uint64_t disk_bytes = 0;  // of its own loads; read_bytes of them have arrived
  uint64_t read_bytes = 0;
  bool touched = false;  // its use was noted
  bool released = false;
  bool finish_noted = false;
  bool prefetch = false;    // nobody's restore (prefetch_path.cc)
  bool reads_disk = false;  // the placement was told kDiskReadsBegin

  // Counts the loading spans that lack each layer.
  void ExpectLoad(const ChunkLoad& load);
  // One of them got layers [from_layer, to_layer).
  void LoadAdvanced(uint32_t from_layer, uint32_t to_layer);
  // The valid tokens end at `token`; loading spans from there on are let go, except for what the
  // engine may be copying. (Asserts the lock: the analysis cannot see that store_->state_.mu is
  // the caller's.)
  void CutAt(uint64_t token, const std::string& reason);
  RestoreProgress Progress() const;
  uint64_t valid_tokens() const { return valid_tokens_; }
  void SetValidTokens(uint64_t tokens, std::string reason) {
    valid_tokens_ = tokens;
    miss_reason_ = std::move(reason);
  }

  // Tells the observer the present progress; outside the store's lock.
  void TellObserver();

  absl::Mutex observer_mu;
  std::function<void(const RestoreProgress&)> observer ABSL_GUARDED_BY(observer_mu);

 private:
  std::vector<uint32_t> pending_;  // by layer
  uint64_t valid_tokens_ = 0;
  std::string miss_reason_;
};

class RestoreTask final : public RestoreOperation {
 public:
  explicit RestoreTask(std::shared_ptr<RestoreJob> job) : job_(std::move(job)) {}
  ~RestoreTask() override;

  const KvLayout& layout() const override { return job_->layout->layout; }
  uint64_t generation() const override { return job_->generation; }
  std::span<const RestoredSpan> spans() const override { return job_->spans; }
  std::span<const ChunkSlot> slots() const override { return job_->slots; }
  RestoreProgress progress() const override;
  void Observe(std::function<void(const RestoreProgress&)> observer) override;
  void CutAtLayer(uint32_t layer) override;
  void ReportDamage(size_t span, uint32_t layer) override;

 private:
  std::shared_ptr<RestoreJob> job_;
};

}  // namespace turnkeep
