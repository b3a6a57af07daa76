// The store's implementation: one class, its methods by theme in
//   store.cc         opening, closing, tenants, layouts
//   housekeeping.cc  the housekeeping thread
//   save_path.cc     a save from plan to commit
//   import_path.cc   the same for the chunks of a session file
//   restore_path.cc  a restore from match to last layer (mirror image of save_path.cc)
//   room_wait.cc     restores that wait for room in the host tier
//   chunk_load.cc    the loads from disk that restores share
//   hint_path.cc     what the engine tells of the future; decline.cc: and of its speed
//   prefetch_path.cc loads that nobody waits for yet
//   session_ops.cc   fork, truncate, rename, drop, pin, time to live, list, show
//   explain.cc       explain and tree; verify.cc: online check of every byte
//   status.cc        numbers; activity.cc: queue, windows and last decisions
//   load.cc          reopening: from the index to the catalog
// Size: one class is declared in one place.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <absl/container/flat_hash_set.h>
#include <absl/synchronization/mutex.h>

#include "disk_tier/aligned_buffer.h"
#include "store/admission.h"
#include "store/disk_writer.h"
#include "store/expectations.h"
#include "store/gpu_residency.h"
#include "store/hint_limits.h"
#include "store/prompt_match.h"
#include "store/state.h"
#include "store/store.h"

namespace boost::asio {
class thread_pool;
}

namespace turnkeep {

class SaveTask;
class RestoreTask;
class RestoreJob;
using HeldChunks = absl::flat_hash_set<ChunkId>;  // RestoreRequest::held_chunks
struct ChunkLoad;

class StoreImpl final : public Store, private SegmentObserver {
 public:
  static absl::StatusOr<std::unique_ptr<StoreImpl>> Open(StoreOptions options);
  ~StoreImpl() override;

  absl::Status Close(absl::Duration deadline) override;
  absl::StatusOr<TenantNumber> OpenTenant(const std::string& name) override;
  absl::StatusOr<std::unique_ptr<KvStore>> ForTenant(const std::string& name) override;
  absl::StatusOr<VerifyReport> Verify(TenantNumber tenant, const VerifyRequest& request,
                                      const std::function<void(uint64_t, uint64_t)>& progress,
                                      const std::function<bool()>& cancelled) override;
  std::unique_ptr<GpuEngine> OpenGpuEngine(TenantNumber tenant, std::string name,
                                           int64_t pid) override {
    return gpu_.Open(tenant, std::move(name), pid);
  }
  void BeginSave(TenantNumber tenant, const SaveRequest& request,
                 std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)> done) override;
  void BeginImport(
      TenantNumber tenant, const ImportRequest& request,
      std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)> done) override;
  void BeginRestore(TenantNumber tenant, const RestoreRequest& request, RestoreDone done,
                    std::function<bool()> abandoned) override;
  absl::StatusOr<SegmentGrant> Segment(uint32_t segment) override;
  void ObserveReleasedSegments(std::function<void(uint32_t segment)> observer) override;
  StoreStatus GetStatus() override;
  Activity GetActivity(TenantNumber tenant, const ActivityRequest& request) override;
  std::vector<SessionInfo> ListAllSessions(TenantNumber tenant,
                                           const ListRequest& request) override;
  std::vector<std::string> ListTenants() override;

  // What KvStore (core/kv_store.h) promises, for one tenant.
  absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout);
  absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint);
  absl::StatusOr<SessionInfo> ForkSession(TenantNumber tenant, const ForkRequest& request);
  absl::StatusOr<SessionInfo> TruncateSession(TenantNumber tenant, const TruncateRequest& request);
  absl::StatusOr<SessionInfo> RenameSession(TenantNumber tenant, const std::string& from,
                                            const std::string& to);
  absl::Status DropSession(TenantNumber tenant, const std::string& name);
  absl::StatusOr<SessionInfo> SetPinned(TenantNumber tenant, const std::string& name, bool pinned);
  absl::StatusOr<SessionInfo> SetTtl(TenantNumber tenant, const std::string& name,
                                     absl::Duration ttl);
  absl::StatusOr<SessionInfo> StatSession(TenantNumber tenant, const std::string& name);
  absl::StatusOr<SessionDetail> ShowSession(TenantNumber tenant, const std::string& name);
  HintReply Hint(TenantNumber tenant, const HintRequest& request);
  absl::StatusOr<Explanation> Explain(TenantNumber tenant, const ExplainRequest& request);
  absl::StatusOr<std::vector<TreeNode>> Tree(TenantNumber tenant, const TreeRequest& request);

 private:
  friend class SaveTask;
  friend class RestoreTask;
  friend class RestoreJob;
  friend class IndexLoader;
  friend class PrefetchProbe;  // a test's

  using SaveDone = std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)>;
  struct WaitingSave {
    std::unique_ptr<SaveTask> task;
    int64_t deadline_ns = 0;
    SaveDone done;
  };

  struct WaitingRestore {
    std::shared_ptr<RestoreJob> job;  // shared with the loads that it has
    int64_t deadline_ns = 0;
    RestoreDone done;
    std::function<bool()> abandoned;
  };

  StoreImpl(StoreOptions options, Placement placement);

  // SegmentObserver; called under the lock.
  void OnSegmentCreated(const SegmentInfo& segment) override;
  void OnSegmentDestroyed(const SegmentInfo& segment) override;

  absl::Status OpenDisk();
  absl::Status StartRun();
  void Housekeep();
  void RetryWaitingSaves(std::vector<WaitingSave>* finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  absl::Status CheckOpen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::StatusOr<const Tenant*> TenantOf(TenantNumber number)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::StatusOr<const LayoutInfo*> LayoutOf(const Fingerprint& fingerprint)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::StatusOr<Session*> SessionOf(TenantNumber tenant, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::Status CheckPrompt(const Prompt& prompt, const KvLayout& layout) const;
  void StartSave(std::unique_ptr<SaveTask> task, absl::Duration space_deadline, SaveDone done);

  // Reads the token ids of a chunk from its header on disk; the entry's disk copy is
  // pinned meanwhile. Both block.
  absl::StatusOr<std::vector<uint32_t>> ReadHeaderTokens(const ChunkEntry& entry,
                                                         const LayoutInfo& layout);
  absl::Status ReadExtentBlocking(ExtentRef extent, uint64_t offset, std::span<std::byte> buffer);
  // Runs `match` under the lock until it needs no more headers. The lock is held on entry
  // and on return, and given up in between when a header has to be read.
  PromptMatch MatchWithHeaders(const std::function<PromptMatch(const HeaderTokens&)>& match)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // Steps of a restore (restore_path.cc).
  PromptMatch MatchRequest(const Tenant& tenant, const LayoutInfo& layout,
                           const RestoreRequest& request, uint64_t* generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void Touch(Session* session, uint64_t* generation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  static void ClipMatch(uint64_t max_tokens, PromptMatch* match);
  // Cuts the match to what pays (decline.cc).
  // Returns by how many seconds what is left is predicted to beat prefilling it; infinity when the
  // engine has not said its speed.
  double DeclineWhatDoesNotPay(const Tenant& tenant, const LayoutInfo& layout,
                               const HeldChunks& held, PromptMatch* match)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  Admission::Verdict JudgeSpans(uint16_t tenant, const LayoutInfo& layout,
                                const std::vector<Span>& spans, const HeldChunks& held)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer SetSpeed(TenantNumber tenant, const EngineSpeed& speed) ABSL_LOCKS_EXCLUDED(state_.mu);
  void TakeSpans(const PromptMatch& match, const HeldChunks& held_chunks, RestoreJob* job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void TouchSpans(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  bool StartLoads(const std::shared_ptr<RestoreJob>& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void FinishBegin(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void CountRestore(const RestoreJob& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void NoteFinished(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void ReleaseJob(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // Restores that wait for room (room_wait.cc).
  // Starts the loads of what is only on disk. False: it waits for room, at most so long, and has
  // taken `done` and `abandoned`.
  bool PlaceLoads(const std::shared_ptr<RestoreJob>& job, absl::Duration longest, RestoreDone* done,
                  std::function<bool()>* abandoned) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  bool RoomIsComingFor(const RestoreJob& job) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void MakeRoomFor(const RestoreJob& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void Reexamine(RestoreJob* job, size_t span) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::string WhyNoRoom(const RestoreJob& job) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void RetryWaitingRestores(std::vector<WaitingRestore>* finished)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void FinishWaiting(WaitingRestore waiting) ABSL_LOCKS_EXCLUDED(state_.mu);

  // Loads (chunk_load.cc).
  // Null when there is no room for it, or when it cannot be joined any more.
  std::shared_ptr<ChunkLoad> JoinOrStartLoad(ChunkIndex chunk, RestoreJob* job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::shared_ptr<ChunkLoad> StartLoad(ChunkIndex chunk, SlotRef slot, RestoreJob* job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void BeginDiskReads(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void EndDiskReads(RestoreJob* job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // Takes up what the placement wants prefetched; each job is to be run without the lock.
  std::vector<std::shared_ptr<RestoreJob>> StartPrefetches()
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::shared_ptr<RestoreJob> StartPrefetch(ChunkIndex chunk)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void RunPrefetch(const std::shared_ptr<RestoreJob>& job) ABSL_LOCKS_EXCLUDED(state_.mu);
  void LeaveLoad(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void KeepSlot(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void DropSlot(const std::shared_ptr<ChunkLoad>& load, RestoreJob* job, size_t span)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void EndLoad(const std::shared_ptr<ChunkLoad>& load) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void CompleteLoad(const std::shared_ptr<ChunkLoad>& load)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void PumpReads(const std::shared_ptr<RestoreJob>& job) ABSL_LOCKS_EXCLUDED(state_.mu);
  ExtentRead MakeRead(const std::shared_ptr<RestoreJob>& job,
                      const std::shared_ptr<ChunkLoad>& load, size_t index);
  void SubmitReads(std::vector<ExtentRead> batch) ABSL_LOCKS_EXCLUDED(state_.mu);
  static absl::Status VerifyReads(ChunkLoad& load, size_t index, uint32_t* layers_ready);
  void ReadEnded(const std::shared_ptr<RestoreJob>& job, const std::shared_ptr<ChunkLoad>& load,
                 size_t index, absl::Status status) ABSL_LOCKS_EXCLUDED(state_.mu);
  void AdvanceLoad(const std::shared_ptr<ChunkLoad>& load, uint32_t layers_ready,
                   const absl::Status& status, std::vector<std::shared_ptr<RestoreJob>>* to_tell)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void CountRead(RestoreJob* job, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // Hints (hint_path.cc). FindHinted is NotFound when nothing is stored of it.
  absl::StatusOr<HintedChunks> FindHinted(TenantNumber tenant, const HintTarget& target)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer PrefetchAnswer(const HintedChunks& found) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // Why the tenant may not have this, too, in `kept` (expectations_ or retained_); empty: it may.
  std::string WhyFull(const Expectations& kept, const Expectations::Name& name,
                      const HintedChunks& found) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer ExpectUse(const Expectations::Name& name, const HintedChunks& found,
                       Expectations::When when) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer HintExpect(const Expectations::Name& name, const HintedChunks& found,
                        const HintItem& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer Demote(const Expectations::Name& name, const HintedChunks& found, HintAction action)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer Retain(const Expectations::Name& name, const HintedChunks& found, const HintItem& item)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  HintAnswer HintChunks(TenantNumber tenant, const HintItem& item) ABSL_LOCKS_EXCLUDED(state_.mu);
  HintAnswer HintSession(TenantNumber tenant, const HintItem& item) ABSL_LOCKS_EXCLUDED(state_.mu);
  HintAnswer HintWaiting(TenantNumber tenant, const WaitingRequest& waiting, int64_t ceiling,
                         std::set<std::string>* names, int64_t* last_place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  int64_t OldPlaces(TenantNumber tenant, const std::vector<WaitingRequest>& queue,
                    const std::vector<size_t>& order, std::vector<int64_t>* ceilings)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::vector<HintAnswer> HintQueue(TenantNumber tenant, const std::vector<WaitingRequest>& queue)
      ABSL_LOCKS_EXCLUDED(state_.mu);
  static std::string NameOfTarget(const std::string& session, const Prompt& prompt,
                                  const Fingerprint& layout);
  Expectations::Changed TellExpected() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  Expectations::Changed TellRetained() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // It is used now: what was expected of it has come.
  void FulfilExpectations(TenantNumber tenant, const std::string& session, const Prompt& prompt,
                          const Fingerprint& layout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void RenameHints(uint16_t tenant, const std::string& from, const std::string& to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // Verify (verify.cc).
  absl::StatusOr<std::vector<ChunkIndex>> ChunksToVerify(TenantNumber tenant,
                                                         const VerifyRequest& request,
                                                         uint64_t* total_bytes)
      ABSL_LOCKS_EXCLUDED(state_.mu);
  void VerifyChunk(ChunkIndex chunk, bool repair, AlignedBuffer* buffer, VerifyReport* report)
      ABSL_LOCKS_EXCLUDED(state_.mu);

  // Explain and tree (explain.cc).
  struct PendingRun {
    ChunkIndex first = kNoChunk;
    uint32_t depth = 0;
    uint64_t token_begin = 0;
  };
  using EndsAt = absl::flat_hash_map<ChunkIndex, std::vector<const std::string*>>;
  void ExplainGpu(uint32_t tenant, const std::vector<Span>& spans, Explanation* out) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void ExplainSpans(const std::vector<Span>& spans, const Tenant& tenant, const LayoutInfo& layout,
                    Explanation* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  absl::Status ExplainPrompt(const Tenant& tenant, const ExplainRequest& request,
                             const LayoutInfo* layout, Explanation* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void Predict(const LayoutInfo& layout, const Admission::Verdict& verdict, Explanation* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void ExplainNeverSaved(const Tenant& tenant, const LayoutInfo& layout, const Prompt& prompt,
                         const PromptMatch& match, Explanation* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void AddRun(ChunkIndex first, uint32_t depth, uint64_t token_begin, const EndsAt& ends,
              std::vector<TreeNode>* out, std::vector<PendingRun>* pending)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  // Replaces the session's view, moves references, and counts the change.
  void SetView(Session* session, std::vector<Span> view, std::string_view reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  Session* CreateSession(TenantNumber tenant, const std::string& name, const LayoutInfo& layout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void EraseSession(Session* session, std::string_view reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void ExpireSessions() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  // The session as the index shall hold it; spans before `first_changed_span` are there.
  SessionChange ChangeOf(Session* session, size_t first_changed_span)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  void PersistSession(Session* session, size_t first_changed_span,
                      std::function<void(PersistResult)> done)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  SessionInfo InfoOf(const Session& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::vector<Span> Slice(const Session& session, uint64_t begin, uint64_t end) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  const Decision* DecisionOf(const ChunkEntry& entry) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);
  std::string WhyMissing(const ChunkEntry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_.mu);

  GpuResidency gpu_;  // what engines say; its lock is taken after the store's
  StoreState state_;
  IndexBatch opening_changes_;  // what loading the index found to be put right
  std::unique_ptr<DiskWriter> writer_;
  std::function<void(uint32_t)> released_segments_ ABSL_GUARDED_BY(state_.mu);
  absl::flat_hash_map<ChunkIndex, std::shared_ptr<ChunkLoad>> loads_ ABSL_GUARDED_BY(state_.mu);
  // Threads that check what has been read. Not the device's, which has its own work; several,
  // because a good drive reads more than one thread hashes.
  std::unique_ptr<boost::asio::thread_pool> verifiers_;
  // Reads that are under way or being checked; the destructor waits for them.
  uint64_t reads_running_ ABSL_GUARDED_BY(state_.mu) = 0;
  // Numbers whose index record has not been written yet; every call tries again.
  std::set<uint16_t> unwritten_tenants_ ABSL_GUARDED_BY(state_.mu);
  std::set<uint16_t> unwritten_layouts_ ABSL_GUARDED_BY(state_.mu);
  Expectations expectations_ ABSL_GUARDED_BY(state_.mu);
  Expectations retained_ ABSL_GUARDED_BY(state_.mu);  // by minus the priority
  std::deque<WaitingSave> waiting_saves_ ABSL_GUARDED_BY(state_.mu);
  // The first takes the room that is made; the others hold what they had when they began to wait.
  std::deque<WaitingRestore> waiting_restores_ ABSL_GUARDED_BY(state_.mu);
  bool room_made_ ABSL_GUARDED_BY(state_.mu) = false;
  bool stop_ ABSL_GUARDED_BY(state_.mu) = false;
  bool closed_ ABSL_GUARDED_BY(state_.mu) = false;
  Admission admission_ ABSL_GUARDED_BY(state_.mu);
  int64_t opened_ns_ = 0;
  std::thread housekeeper_;
};

}  // namespace turnkeep
