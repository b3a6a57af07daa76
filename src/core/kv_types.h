// Requests and results of the store's interface (kv_store.h). Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <absl/time/time.h>

#include "core/chunk_identity.h"
#include "core/gpu_holding.h"
#include "core/ids.h"
#include "core/limits.h"

namespace turnkeep {

// kGpu: in the pool of an engine process. The store knows of it by report alone and never reads it.
enum class Tier : uint8_t { kNone = 0, kHost = 1, kDisk = 2, kGpu = 3 };
std::string_view NameOf(Tier tier);

// A context: its token ids, or one hash of the engine's own per chunk (the last may
// stand for a partly filled chunk) together with the number of tokens.
// Borrows; the caller keeps the memory alive for the duration of the call.
struct Prompt {
  std::span<const uint32_t> tokens;
  std::span<const BlockHash> block_hashes;
  uint64_t hashed_token_count = 0;

  bool hashed() const { return !block_hashes.empty(); }
  uint64_t token_count() const { return hashed() ? hashed_token_count : tokens.size(); }
};

// ---- save ------------------------------------------------------------------------

struct SaveRequest {
  std::string session;
  // The generation that the writer last saw; 0 means that the session must be new.
  uint64_t expected_generation = 0;
  Fingerprint layout;  // registered before
  // The whole context that the session shall show after the commit. What it has in
  // common with the stored session, or with any session of the tenant, is not
  // written again; what the stored session has beyond it is dropped.
  Prompt prompt;
  // Added to a token's index in the context to give the position its key was rotated for.
  int64_t position_offset = 0;
  // How long to wait for room before fewer tokens are accepted.
  absl::Duration space_deadline = absl::Seconds(10);
  std::optional<absl::Duration> ttl;  // unset: as before
};

// A chunk whose pages the engine must provide.
struct ChunkToSave {
  uint64_t token_begin = 0;  // in the context
  uint32_t token_count = 0;
  ChunkId chunk;  // what the engine's own pool may call it
};

struct CommitResult {
  uint64_t generation = 0;
  uint64_t token_count = 0;
  uint64_t new_chunks = 0;
  uint64_t new_bytes = 0;  // KV bytes taken over, without headers
  // False when the durability that is configured could not be kept (the disk tier is full
  // or failing); the commit then holds in host memory, and `note` says why.
  bool durable = true;
  std::string note;
};

// ---- restore ---------------------------------------------------------------------

struct RestoreRequest {
  // By session, by session and prompt (contents are compared, the common prefix is
  // restored), or by prompt alone (longest prefix stored for this tenant).
  std::string session;
  Prompt prompt;
  Fingerprint layout;
  uint64_t max_tokens = kMaxSessionTokens;
  // Chunks whose bytes the engine has and keeps while the ticket lives (its page pool): they count
  // as restored, of tier kGpu, and are neither loaded nor given, so that a restore of what is
  // partly there reads the rest alone. At most kMaxHeldChunks; borrowed for the call.
  std::span<const ChunkId> held_chunks;
  // Past it, layers that have not arrived are a miss.
  absl::Duration deadline = absl::InfiniteDuration();
};

// A run of tokens that comes from one chunk.
struct RestoredSpan {
  uint64_t token_begin = 0;  // index in the restored context
  uint32_t token_count = 0;
  uint32_t first_in_chunk = 0;     // index of the first of them inside the chunk's pages
  uint32_t chunk_token_count = 0;  // n in the shapes of layout.h
  uint64_t stored_position = 0;    // position the first of them had when it was saved
  Tier tier = Tier::kNone;         // where it was found
};

// ---- sessions --------------------------------------------------------------------

struct SessionInfo {
  std::string name;
  uint64_t generation = 0;
  Fingerprint layout;
  std::string model;
  uint64_t token_count = 0;
  uint64_t restorable_tokens = 0;  // leading tokens that some tier holds
  uint64_t chunk_count = 0;
  uint64_t kv_bytes = 0;    // of all its chunks, stored or not
  uint64_t gpu_bytes = 0;   // of those that some engine has in its page pool, each once
  uint64_t host_bytes = 0;  // slots held in the host tier
  uint64_t disk_bytes = 0;
  uint64_t shared_chunks = 0;  // also referenced by another session
  int64_t created_unix_s = 0;
  int64_t last_used_unix_s = 0;
  int64_t expires_unix_s = 0;  // 0: never
  bool pinned = false;
  bool truncated = false;  // shows less than the chunks it refers to
};

struct SessionSpan {
  uint64_t token_begin = 0;
  uint32_t token_count = 0;
  uint32_t first_in_chunk = 0;
  uint32_t chunk_token_count = 0;
  ChunkId chunk;
  uint64_t stored_position = 0;
  uint64_t slot_bytes = 0;
  bool in_host = false;
  bool on_disk = false;
  uint32_t gpu_engines = 0;    // that have it in their page pools
  uint32_t session_count = 0;  // sessions that refer to the chunk
  uint32_t pin_count = 0;
  std::string missing_reason;  // when no tier holds it
};

struct SessionDetail {
  SessionInfo info;
  // The parent of the first chunk of every untruncated context of this tenant and
  // layout (ChunkHasher::Root), so that an exporter can tell such a chunk from one whose
  // prefix was dropped.
  ChunkId root;
  std::vector<SessionSpan> spans;
};

struct ListRequest {
  std::string name_prefix;
  std::string after;      // names greater than this: for paging
  uint32_t limit = 1000;  // in name order
};

struct ForkRequest {
  std::string source;
  std::string target;                   // must not exist
  std::optional<uint64_t> token_count;  // leading tokens to keep; unset: all
};

struct TruncateRequest {
  std::string session;
  uint64_t expected_generation = 0;  // 0: whatever it is
  uint64_t drop_begin = 0;           // tokens [drop_begin, drop_end) leave the context
  uint64_t drop_end = 0;
};

// ---- seeing ----------------------------------------------------------------------

struct ExplainRequest {
  std::string session;  // or
  Prompt prompt;        // with
  Fingerprint layout;   // the layout (zero: every layout of the tenant is tried)
};

// A run of tokens with one fate.
struct ExplainPart {
  uint64_t token_begin = 0;
  uint64_t token_count = 0;
  Tier tier = Tier::kNone;  // kNone: missing
  std::string reason;       // for the missing: why, when and for what
};

struct Explanation {
  uint64_t token_count = 0;
  uint64_t restorable_tokens = 0;
  uint64_t host_bytes = 0;       // to be copied from the host tier
  uint64_t disk_bytes = 0;       // to be read from disk
  double predicted_us = 0;       // to load what is stored, at the bandwidths measured so far
  double recompute_us = 0;       // to prefill it instead; 0: the engine has not said its speed
  uint64_t declined_tokens = 0;  // stored, and not restored: prefilling them takes less time
  std::vector<ExplainPart> parts;
  std::vector<GpuHolder> gpu;      // engines that have a part in device memory, for themselves
  std::vector<std::string> notes;  // e.g. the layout field that differs
};

// One run of chunks without a branch in the prefix tree.
struct TreeNode {
  uint32_t depth = 0;  // of runs, preorder
  uint64_t token_begin = 0;
  uint64_t token_count = 0;
  uint64_t chunk_count = 0;
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  uint32_t session_count = 0;          // sessions that pass through it
  std::vector<std::string> ends_here;  // some of the sessions that end in it
  Fingerprint layout;
  ChunkId first_chunk;
};

struct TreeRequest {
  uint32_t max_nodes = 1000;
};

struct VerifyRequest {
  std::string session;  // empty: everything of the tenant
  bool repair = false;  // drop damaged copies, so that they are misses
};

struct VerifyReport {
  uint64_t chunks_checked = 0;
  uint64_t bytes_checked = 0;
  uint64_t host_copies_damaged = 0;
  uint64_t disk_copies_damaged = 0;
  uint64_t copies_dropped = 0;
  std::vector<std::string> problems;  // the first 100, one line each
};

struct TierStatus {
  uint64_t capacity_bytes = 0;
  uint64_t reserved_bytes = 0;  // segments or files, counted against the capacity
  uint64_t used_bytes = 0;      // slots that hold something
  uint64_t pinned_bytes = 0;
  uint64_t chunk_count = 0;
  std::string description;  // what is in use and why, fallbacks named
};

struct NamedCount {
  std::string name;    // Prometheus name without the "turnkeep_" prefix
  std::string labels;  // e.g. tier="host"; empty for none
  std::string help;
  double value = 0;
  bool monotonic = true;  // counter, else gauge
};

struct NamedHistogram {
  std::string name;
  std::string help;
  std::vector<double> upper_bounds;  // seconds, ascending
  std::vector<uint64_t> counts;      // per bucket, one more for the rest
  double sum = 0;
};

struct StoreStatus {
  std::string version;
  std::string durability;
  std::string policy;
  double uptime_s = 0;
  uint64_t session_count = 0;
  uint64_t chunk_count = 0;
  uint64_t open_tickets = 0;
  TierStatus host;
  TierStatus disk;
  std::vector<std::string> warnings;  // fallbacks and failures that an operator should see
  std::vector<NamedCount> counts;
  std::vector<NamedHistogram> histograms;
};

// ---- import ----------------------------------------------------------------------

// A chunk of a session file, to be stored under this tenant's own identity.
struct ImportedChunk {
  ChunkId foreign_id;
  ChunkId foreign_parent;
  bool parent_is_root = false;
  std::vector<uint32_t> tokens;
  BlockHash block_hash;
  uint32_t token_count = 0;
  uint64_t position_base = 0;
};

struct ImportRequest {
  std::string session;  // must not exist
  Fingerprint layout;
  // Each once, in the order in which `slices` first shows them; so parents come before
  // children. SaveTicket::chunks() of an import are the last ones of this list, whole
  // (token_count of the chunk, not of the slice), in the same order.
  std::vector<ImportedChunk> chunks;
  struct Slice {
    uint32_t chunk_index = 0;
    uint32_t first = 0;
    uint32_t count = 0;
  };
  std::vector<Slice> slices;  // the session's view
};

}  // namespace turnkeep
