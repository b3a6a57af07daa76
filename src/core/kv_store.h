// The one interface to a store: turnkeep::Store (embedded, src/store/store.h) and
// turnkeep::Client (to turnkeepd, src/api/client.h) both implement it, and one test
// suite runs against both.
//
// A KvStore speaks for one tenant. All methods are thread-safe and block until the
// answer is there, unless said otherwise. Errors are those of core/status.h; when the
// daemon is away, calls fail with Unavailable and open restores end in a miss: an
// engine never crashes, hangs or gets wrong KV for it.
//
// Save, layer by layer:
//   TK_ASSIGN_OR_RETURN(auto save, store.BeginSave({.session = "alice", .expected_generation = g,
//                                                   .layout = fp, .prompt = {.tokens = context}}));
//   for (uint32_t layer = 0; layer < layers; ++layer) {
//     for (size_t i = 0; i < save->chunks().size(); ++i) FillFromEngine(save->Page(i, layer));
//     TK_RETURN_IF_ERROR(save->FinishLayer(layer));
//   }
//   TK_ASSIGN_OR_RETURN(CommitResult done, save->Commit(absl::Seconds(5)));
//
// Restore, layer by layer:
//   TK_ASSIGN_OR_RETURN(auto restore, store.BeginRestore({.session = "alice", .layout = fp,
//                                                         .prompt = {.tokens = context}}));
//   for (uint32_t layer = 0; layer < layers; ++layer) {
//     TK_ASSIGN_OR_RETURN(uint64_t tokens, restore->WaitLayer(layer));  // what is in place
//     for (size_t i = 0; …) TK_RETURN_IF_ERROR(restore->ReadPage(i, layer, buffer));
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/activity.h"
#include "core/chunk_header.h"
#include "core/hint.h"
#include "core/kv_types.h"
#include "core/layout.h"

namespace turnkeep {

// One running save. Nothing of it is visible to anybody before Commit succeeds;
// destroying the ticket abandons it and gives its slots back.
//
// Thread-safety: Page and FinishLayer may run on several threads for different
// layers; Commit once, after all FinishLayer calls have returned.
class SaveTicket {
 public:
  virtual ~SaveTicket() = default;

  // Leading tokens of the context that are stored already; the engine need not
  // provide them. Ends on a chunk border of the context.
  virtual uint64_t known_tokens() const = 0;
  // Tokens that the session will have after the commit; less than the prompt's when
  // there was no room for more.
  virtual uint64_t accepted_tokens() const = 0;
  // What the engine must provide, in context order: from known_tokens on without gaps.
  virtual std::span<const ChunkToSave> chunks() const = 0;

  // Where the layer page of chunks()[chunk] goes: LayerPageBytes(layer, token_count)
  // bytes, 64-byte aligned, writable until Commit or destruction. In the host arena
  // itself where there is shared memory. Never blocks. If the daemon dies the memory
  // stays valid, and Commit fails.
  virtual std::span<std::byte> Page(size_t chunk, uint32_t layer) = 0;

  // Says that all pages of `layer` are written, and computes their digests. A page
  // changed after this is damage, and becomes a miss.
  virtual absl::Status FinishLayer(uint32_t layer) = 0;

  // Makes the session show the context. FailedPrecondition: another writer committed
  // first (the message names both generations), or a layer was not finished.
  // ResourceExhausted, Unavailable, DeadlineExceeded: nothing changed, except that
  // after DeadlineExceeded and Unavailable the commit may still have happened (the
  // generation tells). By durability, returns once the KV is in host memory (none),
  // handed to the disk and index (write), or synced (sync).
  virtual absl::StatusOr<CommitResult> Commit(absl::Duration deadline) = 0;
};

// One running restore. Owns the pins of what it restores; destroying it releases them.
//
// Thread-safety: all methods may run on several threads; ReadPage for different pages
// runs in parallel.
class RestoreTicket {
 public:
  virtual ~RestoreTicket() = default;

  // Leading tokens of the context that will be restored; 0 is a miss (the ticket is
  // then empty and needs nothing). May shrink, never grows: see WaitLayer.
  virtual uint64_t token_count() const = 0;
  // Generation of the session, 0 when restored by tokens alone.
  virtual uint64_t generation() const = 0;
  virtual std::span<const RestoredSpan> spans() const = 0;
  // The chunk behind spans()[span]; what the engine's own pool may call it.
  virtual const ChunkId& chunk(size_t span) const = 0;
  // Why the context's remaining tokens are not restored; empty if all are.
  virtual std::string miss_reason() const = 0;

  // Waits until `layer` of every span is in host memory. Returns the number of
  // leading tokens for which it is: less than token_count() when the rest was found
  // damaged, or was late for `deadline` or for the request's deadline. From then on
  // token_count() is that number. Layers arrive in order.
  virtual absl::StatusOr<uint64_t> WaitLayer(uint32_t layer, absl::Duration deadline) = 0;
  absl::StatusOr<uint64_t> WaitLayer(uint32_t layer) {
    return WaitLayer(layer, absl::InfiniteDuration());
  }

  // Copies the whole layer page of the chunk behind spans()[span] to `destination`
  // (exactly its size) and verifies it. DataLoss: the destination holds garbage, the
  // copy is reported to the store and dropped, and token_count() now ends before the
  // span. FailedPrecondition, as for whatever else would read it: the engine has the chunk
  // (RestoreRequest::held_chunks). Only after WaitLayer(layer).
  virtual absl::Status ReadPage(size_t span, uint32_t layer, std::span<std::byte> destination) = 0;

  // The page itself, for copies by a device. Not verified: call VerifyPage. Valid
  // until the ticket is destroyed. Only after WaitLayer(layer).
  virtual std::span<const std::byte> Page(size_t span, uint32_t layer) = 0;
  virtual absl::Status VerifyPage(size_t span, uint32_t layer) = 0;

  // The verified header of the chunk behind spans()[span]: token ids, identity,
  // position. Only after WaitLayer(0).
  virtual absl::StatusOr<ChunkHeader> Header(size_t span) = 0;
};

class KvStore {
 public:
  virtual ~KvStore() = default;

  // Makes the layout known (idempotent) and returns its fingerprint. InvalidArgument
  // names the field and the value.
  virtual absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout) = 0;
  virtual absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint) = 0;

  virtual absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSave(const SaveRequest& request) = 0;
  // A miss is a ticket with token_count() == 0, not an error. A session that does not
  // exist is looked for by the prompt, if there is one: a new session gets the prefix that
  // others have saved. A layout that is not registered is InvalidArgument.
  virtual absl::StatusOr<std::unique_ptr<RestoreTicket>> BeginRestore(
      const RestoreRequest& request) = 0;
  // As BeginSave, for the chunks of a session file; commits like a save.
  virtual absl::StatusOr<std::unique_ptr<SaveTicket>> BeginImport(const ImportRequest& request) = 0;

  // None of these moves KV bytes. NotFound: no such session. AlreadyExists: the target
  // does. Each returns the session as it is afterwards.
  virtual absl::StatusOr<SessionInfo> ForkSession(const ForkRequest& request) = 0;
  virtual absl::StatusOr<SessionInfo> TruncateSession(const TruncateRequest& request) = 0;
  virtual absl::StatusOr<SessionInfo> RenameSession(const std::string& from,
                                                    const std::string& to) = 0;
  virtual absl::Status DropSession(const std::string& name) = 0;
  // A pinned session's copies stay in the tiers they are in. ResourceExhausted when
  // pins would pass their share of a tier.
  virtual absl::StatusOr<SessionInfo> PinSession(const std::string& name) = 0;
  virtual absl::StatusOr<SessionInfo> UnpinSession(const std::string& name) = 0;
  // Drops the session `ttl` after its last use; InfiniteDuration: never.
  virtual absl::StatusOr<SessionInfo> SetSessionTtl(const std::string& name,
                                                    absl::Duration ttl) = 0;

  // What the engine's scheduler knows of the future. Advice, so never an error: every part is
  // answered by itself, also when the daemon is away (rejected). Does not wait for reads or
  // writes, except that pins and times to live are in the index when it returns.
  virtual HintReply Hint(const HintRequest& request) = 0;

  virtual absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) = 0;
  virtual absl::StatusOr<SessionInfo> StatSession(const std::string& name) = 0;
  virtual absl::StatusOr<SessionDetail> ShowSession(const std::string& name) = 0;
  virtual absl::StatusOr<Explanation> Explain(const ExplainRequest& request) = 0;
  virtual absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) = 0;
  // Reads and checks every byte while the store goes on serving. `progress` gets
  // (bytes checked, bytes in all) now and then, from the calling thread.
  virtual absl::StatusOr<VerifyReport> Verify(
      const VerifyRequest& request,
      const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) = 0;
  virtual absl::StatusOr<StoreStatus> Status() = 0;
  // The hinted queue, the windows of prefetch and eviction, and what the placement decided lately.
  virtual absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) = 0;

  // What the page pool of this process holds now, in place of what was said before. It is shown
  // (ListSessions, ShowSession, Explain) and nothing else; it is forgotten when this object, or its
  // connection to the daemon, ends. At most kMaxGpuChunks. Does not wait for the daemon.
  virtual absl::Status ReportGpuResidency(std::span<const GpuChunk> chunks) = 0;
};

}  // namespace turnkeep
