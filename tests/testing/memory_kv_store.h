// A KvStore in plain memory for tests of what stands on the interface: session files and
// the command line. It keeps real chunk identity and real digests, so that sharing and
// damage behave as in the store; it has one tier, no limits and no time of its own.
//
// What it cannot know is set by the test: status, explanation, tree and verify report.
// Not thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/chunk_header.h"
#include "core/chunk_identity.h"
#include "core/kv_store.h"

namespace turnkeep::testing {

class MemoryKvStore : public KvStore {
 public:
  struct Chunk {
    ChunkHeader header;
    std::vector<std::vector<std::byte>> pages;
  };
  struct Session {
    Fingerprint layout;
    std::vector<ChunkSlice> view;
    uint64_t generation = 1;
    bool truncated = false;
    bool pinned = false;
    int64_t expires_unix_s = 0;
  };

  explicit MemoryKvStore(uint8_t key_byte = 1);

  // Changed freely by tests.
  std::map<ChunkId, Chunk> chunks;
  std::map<std::string, Session> sessions;
  uint64_t space_tokens = UINT64_MAX;  // what a save or import accepts
  StoreStatus status;
  Explanation explanation;
  Activity activity;
  std::vector<TreeNode> tree;
  VerifyReport verify_report;
  std::vector<GpuChunk> gpu;  // as last reported
  HintAnswer hint_answer;     // to every part of a hint
  HintRequest last_hint;
  ExplainRequest last_explain;  // without the borrowed prompt
  std::vector<uint32_t> last_explain_tokens;

  const ChunkHasher& hasher() const { return hasher_; }
  std::vector<uint32_t> TokensOf(const std::string& session) const;

  absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout) override;
  absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint) override;
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSave(const SaveRequest& request) override;
  absl::StatusOr<std::unique_ptr<RestoreTicket>> BeginRestore(
      const RestoreRequest& request) override;
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginImport(const ImportRequest& request) override;
  absl::StatusOr<SessionInfo> ForkSession(const ForkRequest& request) override;
  absl::StatusOr<SessionInfo> TruncateSession(const TruncateRequest& request) override;
  absl::StatusOr<SessionInfo> RenameSession(const std::string& from,
                                            const std::string& to) override;
  absl::Status DropSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> PinSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> UnpinSession(const std::string& name) override;
  absl::StatusOr<SessionInfo> SetSessionTtl(const std::string& name, absl::Duration ttl) override;
  absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) override;
  absl::StatusOr<SessionInfo> StatSession(const std::string& name) override;
  absl::StatusOr<SessionDetail> ShowSession(const std::string& name) override;
  HintReply Hint(const HintRequest& request) override {
    last_hint = request;
    return AnswerAll(request, hint_answer.outcome, hint_answer.reason);
  }
  absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) override {
    Activity now = activity;
    std::erase_if(now.events, [&](const ActivityEvent& e) { return e.number <= request.after; });
    return now;
  }
  absl::StatusOr<Explanation> Explain(const ExplainRequest& request) override;
  absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) override;
  absl::StatusOr<VerifyReport> Verify(
      const VerifyRequest& request,
      const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) override;
  absl::StatusOr<StoreStatus> Status() override;
  absl::Status ReportGpuResidency(std::span<const GpuChunk> all) override {
    gpu.assign(all.begin(), all.end());
    return absl::OkStatus();
  }

 private:
  std::map<Fingerprint, KvLayout> layouts_;
  ChunkHasher hasher_;
};

// Saves `tokens` as `session` with pages that depend on the tokens, layer and position.
absl::StatusOr<CommitResult> SaveTokens(KvStore& store, const std::string& session,
                                        const Fingerprint& layout,
                                        const std::vector<uint32_t>& tokens,
                                        uint64_t expected_generation = 0);

// A valid layout of `layers` full layers with 2 heads of 4 dims, float32, 16-token chunks.
KvLayout SmallLayout(const std::string& model = "small", uint32_t layers = 3);

}  // namespace turnkeep::testing
