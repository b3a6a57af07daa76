// A store behind a server that answers when a test says so, and says what no store should.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "api/forwarding_store.h"
#include "store/operations.h"

namespace turnkeep::testing {

// A restore of which nothing has arrived until it ends.
class LateProgress : public RestoreOperation {
 public:
  explicit LateProgress(std::unique_ptr<RestoreOperation> below) : below_(std::move(below)) {}
  ~LateProgress() override {
    if (observer_) observer_(below_->progress());
  }
  const KvLayout& layout() const override { return below_->layout(); }
  uint64_t generation() const override { return below_->generation(); }
  std::span<const RestoredSpan> spans() const override { return below_->spans(); }
  std::span<const ChunkSlot> slots() const override { return below_->slots(); }
  RestoreProgress progress() const override {
    return {.valid_tokens = below_->progress().valid_tokens};
  }
  void Observe(std::function<void(const RestoreProgress&)> observer) override {
    observer_ = std::move(observer);
  }
  void CutAtLayer(uint32_t layer) override { below_->CutAtLayer(layer); }
  void ReportDamage(size_t span, uint32_t layer) override { below_->ReportDamage(span, layer); }

 private:
  const std::unique_ptr<RestoreOperation> below_;
  std::function<void(const RestoreProgress&)> observer_;
};

// Holds back what it is asked for while it is told to, and can name another tenant as the one that
// a segment belongs to.
class OddStore : public ForwardingStore {
 public:
  using ForwardingStore::ForwardingStore;

  void Hold() {
    absl::MutexLock lock(&mutex_);
    holds_ = true;
  }
  // What was held, in its order, and nothing more.
  void LetGo() {
    std::deque<std::function<void()>> held;
    {
      absl::MutexLock lock(&mutex_);
      holds_ = false;
      held.swap(held_);
    }
    for (const auto& answer : held) answer();
  }
  int waiting() const { return waiting_; }
  size_t held() const {
    absl::MutexLock lock(&mutex_);
    return held_.size();
  }

  absl::StatusOr<TenantNumber> OpenTenant(const std::string& name) override {
    WaitForLetGo();
    return below().OpenTenant(name);
  }
  void BeginSave(TenantNumber tenant, const SaveRequest& request, SaveDone done) override {
    const auto wrapped = [this, done = std::move(done)](SaveResult result) {
      if (result.ok()) result = std::make_unique<HeldSave>(this, *std::move(result));
      done(std::move(result));
    };
    below().BeginSave(tenant, request, Held<SaveResult>(wrapped));
  }
  void BeginRestore(TenantNumber tenant, const RestoreRequest& request, RestoreDone done,
                    std::function<bool()> abandoned) override {
    restore_deadline = request.deadline;
    const auto wrapped = [this, done = std::move(done)](RestoreResult result) {
      if (result.ok() && late_progress) {
        result = std::make_unique<LateProgress>(*std::move(result));
      }
      done(std::move(result));
    };
    below().BeginRestore(tenant, request, Held<RestoreResult>(wrapped), std::move(abandoned));
  }
  absl::StatusOr<VerifyReport> Verify(TenantNumber, const VerifyRequest&,
                                      const std::function<void(uint64_t, uint64_t)>& progress,
                                      const std::function<bool()>&) override {
    WaitForLetGo();
    if (late_progress) progress(1, 2);
    return VerifyReport{};
  }
  void ObserveReleasedSegments(std::function<void(uint32_t)> observer) override {
    released_ = observer;
    below().ObserveReleasedSegments(std::move(observer));
  }
  // Of a server that runs.
  void ReleaseSegment(uint32_t segment) { released_(segment); }
  absl::StatusOr<SegmentGrant> Segment(uint32_t segment) override {
    auto grant = below().Segment(segment);
    if (grant.ok()) grant->tenant += others_segments ? 1 : 0;
    return grant;
  }

  // Before the server starts.
  bool others_segments = false;
  bool late_progress = false;  // of restores when they end, of verifies when they are let go
  absl::Duration restore_deadline;

 private:
  using SaveResult = absl::StatusOr<std::unique_ptr<SaveOperation>>;
  using RestoreResult = absl::StatusOr<std::unique_ptr<RestoreOperation>>;

  void WaitForLetGo() {
    absl::MutexLock lock(&mutex_);
    ++waiting_;
    const auto free = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !holds_; };
    mutex_.Await(absl::Condition(&free));
    --waiting_;
  }
  // Now, or when it is let go.
  void Run(std::function<void()> work) {
    {
      absl::MutexLock lock(&mutex_);
      if (holds_) return held_.push_back(std::move(work));
    }
    work();
  }
  template <typename Result>
  std::function<void(Result)> Held(std::function<void(Result)> done) {
    return [this, done = std::move(done)](Result result) {
      Run([done, kept = std::make_shared<Result>(std::move(result))] { done(std::move(*kept)); });
    };
  }

  // Its commit, too, is held back while the store is told to: its slots are then still there.
  class HeldSave : public SaveOperation {
   public:
    HeldSave(OddStore* store, std::unique_ptr<SaveOperation> below)
        : store_(store), below_(std::move(below)) {}
    const KvLayout& layout() const override { return below_->layout(); }
    uint64_t known_tokens() const override { return below_->known_tokens(); }
    uint64_t accepted_tokens() const override { return below_->accepted_tokens(); }
    std::span<const ChunkToSave> chunks() const override { return below_->chunks(); }
    std::span<const ChunkSlot> slots() const override { return below_->slots(); }
    void Commit(std::function<void(absl::StatusOr<CommitResult>)> done) override {
      store_->Run([this, done = std::move(done)] { below_->Commit(done); });
    }

   private:
    OddStore* const store_;
    const std::unique_ptr<SaveOperation> below_;
  };

  mutable absl::Mutex mutex_;
  bool holds_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::function<void()>> held_ ABSL_GUARDED_BY(mutex_);
  std::function<void(uint32_t)> released_;
  std::atomic<int> waiting_{0};  // threads in WaitForLetGo
};

}  // namespace turnkeep::testing
