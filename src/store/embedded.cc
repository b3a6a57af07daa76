#include "store/embedded.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <absl/synchronization/mutex.h>
#include <absl/time/clock.h>

#include "core/check.h"
#include "core/slot_access.h"
#include "core/status.h"
#include "store/store_impl.h"

namespace turnkeep {

namespace {

// A value that another thread will give.
template <typename T>
class Waitable {
 public:
  void Set(T value) {
    absl::MutexLock lock(&mu_);
    value_.emplace(std::move(value));
  }
  std::optional<T> Wait(absl::Time deadline) {
    absl::MutexLock lock(&mu_);
    const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return value_.has_value(); };
    mu_.AwaitWithDeadline(absl::Condition(&ready), deadline);
    return std::exchange(value_, std::nullopt);
  }

 private:
  absl::Mutex mu_;
  std::optional<T> value_ ABSL_GUARDED_BY(mu_);
};

absl::Time After(absl::Duration duration) { return absl::Now() + duration; }

class EmbeddedSave : public SaveTicket {
 public:
  explicit EmbeddedSave(std::unique_ptr<SaveOperation> operation)
      : operation_(std::move(operation)), finished_(operation_->layout().layers.size()) {}

  uint64_t known_tokens() const override { return operation_->known_tokens(); }
  uint64_t accepted_tokens() const override { return operation_->accepted_tokens(); }
  std::span<const ChunkToSave> chunks() const override { return operation_->chunks(); }

  std::span<std::byte> Page(size_t chunk, uint32_t layer) override {
    return PageIn(operation_->slots()[chunk].memory, *operation_->slots()[chunk].geometry, layer);
  }

  absl::Status FinishLayer(uint32_t layer) override {
    const size_t layers = operation_->layout().layers.size();
    if (layer >= layers)
      return InvalidArgument("finish layer {}: the layout has {}", layer, layers);
    const auto slots = operation_->slots();
    for (size_t i = 0; i < slots.size(); ++i) {
      SealPage(slots[i].memory, *slots[i].geometry, slots[i].id, slots[i].epoch, layer);
    }
    absl::MutexLock lock(&mu_);
    finished_[layer] = true;
    return absl::OkStatus();
  }

  absl::StatusOr<CommitResult> Commit(absl::Duration deadline) override {
    {
      absl::MutexLock lock(&mu_);
      if (std::exchange(committed_, true))
        return FailedPrecondition("commit: the ticket was committed before");
      const auto missing = std::find(finished_.begin(), finished_.end(), false);
      if (missing != finished_.end() && !operation_->chunks().empty()) {
        committed_ = false;
        return FailedPrecondition("commit: layer {} was not finished", missing - finished_.begin());
      }
    }
    auto result = std::make_shared<Waitable<absl::StatusOr<CommitResult>>>();
    operation_->Commit(
        [result](absl::StatusOr<CommitResult> done) { result->Set(std::move(done)); });
    auto done = result->Wait(After(deadline));
    if (!done.has_value()) {
      return DeadlineExceeded("commit: not on disk after {}; it may still become so",
                              absl::FormatDuration(deadline));
    }
    return *std::move(done);
  }

 private:
  std::unique_ptr<SaveOperation> operation_;
  absl::Mutex mu_;
  std::vector<bool> finished_ ABSL_GUARDED_BY(mu_);
  bool committed_ ABSL_GUARDED_BY(mu_) = false;
};

class EmbeddedRestore : public RestoreTicket {
 public:
  EmbeddedRestore(std::unique_ptr<RestoreOperation> operation, absl::Time deadline)
      : operation_(std::move(operation)), shared_(std::make_shared<Shared>()), deadline_(deadline) {
    headers_.resize(operation_->slots().size());
    operation_->Observe([shared = shared_](const RestoreProgress& progress) {
      absl::MutexLock lock(&shared->mu);
      shared->progress = progress;
    });
  }

  uint64_t token_count() const override {
    absl::MutexLock lock(&shared_->mu);
    return shared_->progress.valid_tokens;
  }
  uint64_t generation() const override { return operation_->generation(); }
  std::span<const RestoredSpan> spans() const override { return operation_->spans(); }
  const ChunkId& chunk(size_t span) const override { return operation_->slots()[span].id; }
  std::string miss_reason() const override {
    absl::MutexLock lock(&shared_->mu);
    return shared_->progress.miss_reason;
  }

  absl::StatusOr<uint64_t> WaitLayer(uint32_t layer, absl::Duration deadline) override {
    if (layer >= operation_->layout().layers.size()) {
      return InvalidArgument("wait for layer {}: the layout has {}", layer,
                             operation_->layout().layers.size());
    }
    bool arrived = false;
    {
      absl::MutexLock lock(&shared_->mu);
      const auto ready = [this, layer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared_->mu) {
        return shared_->progress.layers_ready > layer || shared_->progress.valid_tokens == 0;
      };
      arrived = shared_->mu.AwaitWithDeadline(absl::Condition(&ready),
                                              std::min(After(deadline), deadline_));
    }
    if (!arrived) operation_->CutAtLayer(layer);
    return token_count();
  }

  absl::Status ReadPage(size_t span, uint32_t layer, std::span<std::byte> destination) override {
    TK_ASSIGN_OR_RETURN(const ChunkHeader* header, VerifiedHeader(span, layer));
    const absl::Status status =
        turnkeep::ReadPage(operation_->slots()[span].memory, *operation_->slots()[span].geometry,
                           *header, layer, destination);
    if (absl::IsDataLoss(status)) operation_->ReportDamage(span, layer);
    return status;
  }

  std::span<const std::byte> Page(size_t span, uint32_t layer) override {
    if (operation_->spans()[span].tier == Tier::kGpu) return {};
    return PageIn(operation_->slots()[span].memory, *operation_->slots()[span].geometry, layer);
  }

  absl::Status VerifyPage(size_t span, uint32_t layer) override {
    TK_ASSIGN_OR_RETURN(const ChunkHeader* header, VerifiedHeader(span, layer));
    const absl::Status status = turnkeep::VerifyPage(
        operation_->slots()[span].memory, *operation_->slots()[span].geometry, *header, layer);
    if (absl::IsDataLoss(status)) operation_->ReportDamage(span, layer);
    return status;
  }

  absl::StatusOr<ChunkHeader> Header(size_t span) override {
    TK_ASSIGN_OR_RETURN(const ChunkHeader* header, VerifiedHeader(span, 0));
    return *header;
  }

 private:
  // Shared with the operation's observer, which may be called once more while the ticket goes.
  struct Shared {
    mutable absl::Mutex mu;
    RestoreProgress progress ABSL_GUARDED_BY(mu);
  };

  absl::StatusOr<const ChunkHeader*> VerifiedHeader(size_t span, uint32_t layer) {
    if (span >= operation_->slots().size() || layer >= operation_->layout().layers.size()) {
      return InvalidArgument("read page: span {} of {}, layer {} of {}", span,
                             operation_->slots().size(), layer, operation_->layout().layers.size());
    }
    const RestoredSpan& where = operation_->spans()[span];
    {
      absl::MutexLock lock(&shared_->mu);
      if (where.token_begin >= shared_->progress.valid_tokens) {
        return NotFound("read page: tokens from {} on are a miss: {}",
                        shared_->progress.valid_tokens, shared_->progress.miss_reason);
      }
      if (layer >= shared_->progress.layers_ready) {
        return FailedPrecondition("read page: layer {} was not waited for", layer);
      }
    }
    if (where.tier == Tier::kGpu) {
      return FailedPrecondition("read page: chunk {} is one that the engine has",
                                operation_->slots()[span].id.ShortHex());
    }
    absl::MutexLock lock(&headers_mu_);
    if (headers_[span] != nullptr) return headers_[span].get();
    const ChunkSlot& slot = operation_->slots()[span];
    absl::StatusOr<ChunkHeader> header =
        DecodeChunkHeader(slot.memory, slot.id, slot.epoch, slot.root);
    if (!header.ok()) {
      operation_->ReportDamage(span, kHeaderLayer);
      return header.status();
    }
    headers_[span] = std::make_unique<ChunkHeader>(*std::move(header));
    return headers_[span].get();
  }

  std::unique_ptr<RestoreOperation> operation_;
  std::shared_ptr<Shared> shared_;
  const absl::Time deadline_;
  absl::Mutex headers_mu_;
  std::vector<std::unique_ptr<ChunkHeader>> headers_ ABSL_GUARDED_BY(headers_mu_);
};

class EmbeddedStore : public KvStore {
 public:
  EmbeddedStore(StoreImpl* store, TenantNumber tenant) : store_(store), tenant_(tenant) {}

  absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout) override {
    return store_->RegisterLayout(layout);
  }
  absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint) override {
    return store_->GetLayout(fingerprint);
  }
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSave(const SaveRequest& request) override {
    return WaitForSave([&](auto done) { store_->BeginSave(tenant_, request, std::move(done)); });
  }
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginImport(const ImportRequest& request) override {
    return WaitForSave([&](auto done) { store_->BeginImport(tenant_, request, std::move(done)); });
  }
  absl::StatusOr<std::unique_ptr<RestoreTicket>> BeginRestore(
      const RestoreRequest& request) override {
    const absl::Time deadline = After(request.deadline);
    using Result = absl::StatusOr<std::unique_ptr<RestoreOperation>>;
    auto result = std::make_shared<Waitable<Result>>();
    store_->BeginRestore(tenant_, request, [result](Result done) { result->Set(std::move(done)); },
                         {});
    auto done = result->Wait(absl::InfiniteFuture());
    TK_CHECK(done.has_value());
    TK_RETURN_IF_ERROR(done->status());
    return std::make_unique<EmbeddedRestore>(**std::move(done), deadline);
  }
  absl::StatusOr<SessionInfo> ForkSession(const ForkRequest& request) override {
    return store_->ForkSession(tenant_, request);
  }
  absl::StatusOr<SessionInfo> TruncateSession(const TruncateRequest& request) override {
    return store_->TruncateSession(tenant_, request);
  }
  absl::StatusOr<SessionInfo> RenameSession(const std::string& from,
                                            const std::string& to) override {
    return store_->RenameSession(tenant_, from, to);
  }
  absl::Status DropSession(const std::string& name) override {
    return store_->DropSession(tenant_, name);
  }
  absl::StatusOr<SessionInfo> PinSession(const std::string& name) override {
    return store_->SetPinned(tenant_, name, true);
  }
  absl::StatusOr<SessionInfo> UnpinSession(const std::string& name) override {
    return store_->SetPinned(tenant_, name, false);
  }
  absl::StatusOr<SessionInfo> SetSessionTtl(const std::string& name, absl::Duration ttl) override {
    return store_->SetTtl(tenant_, name, ttl);
  }
  HintReply Hint(const HintRequest& request) override { return store_->Hint(tenant_, request); }
  absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) override {
    return store_->ListAllSessions(tenant_, request);
  }
  absl::StatusOr<SessionInfo> StatSession(const std::string& name) override {
    return store_->StatSession(tenant_, name);
  }
  absl::StatusOr<SessionDetail> ShowSession(const std::string& name) override {
    return store_->ShowSession(tenant_, name);
  }
  absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) override {
    return store_->GetActivity(tenant_, request);
  }
  absl::StatusOr<Explanation> Explain(const ExplainRequest& request) override {
    return store_->Explain(tenant_, request);
  }
  absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) override {
    return store_->Tree(tenant_, request);
  }
  absl::StatusOr<VerifyReport> Verify(
      const VerifyRequest& request,
      const std::function<void(uint64_t, uint64_t)>& progress) override {
    return store_->Verify(tenant_, request, progress, {});
  }
  absl::StatusOr<StoreStatus> Status() override { return store_->GetStatus(); }
  absl::Status ReportGpuResidency(std::span<const GpuChunk> chunks) override {
    absl::MutexLock lock(&gpu_mu_);
    if (gpu_ == nullptr) gpu_ = store_->OpenGpuEngine(tenant_, "embedded", ::getpid());
    return gpu_->Report(chunks);
  }

 private:
  template <typename Begin>
  absl::StatusOr<std::unique_ptr<SaveTicket>> WaitForSave(const Begin& begin) {
    using Result = absl::StatusOr<std::unique_ptr<SaveOperation>>;
    auto result = std::make_shared<Waitable<Result>>();
    begin([result](Result done) { result->Set(std::move(done)); });
    auto done = result->Wait(absl::InfiniteFuture());
    TK_CHECK(done.has_value());
    TK_RETURN_IF_ERROR(done->status());
    return std::make_unique<EmbeddedSave>(**std::move(done));
  }

  StoreImpl* const store_;
  const TenantNumber tenant_;
  absl::Mutex gpu_mu_;
  std::unique_ptr<GpuEngine> gpu_ ABSL_GUARDED_BY(gpu_mu_);  // from the first report on
};

}  // namespace

std::unique_ptr<KvStore> MakeEmbedded(StoreImpl* store, TenantNumber tenant) {
  return std::make_unique<EmbeddedStore>(store, tenant);
}

}  // namespace turnkeep
