// A request trace against a running store: every prompt is restored, every restored byte compared
// with what its block must hold, and the prompt saved again.
//
// Identity. A block of the trace stands for its tokens: token i of block b is a function of b and
// i; or, as an engine's own block hash, for itself. The layout's revision is the name of the run,
// so that nothing of an earlier run is found. What of a prompt no block of the trace names (the
// last tokens of a trace with whole blocks only) is left out.
//
// Bytes. Word i of layer l of block b, saved as n tokens, is a function of (b, l, n, i) alone.
// Whatever comes back as KV of that block must be that; anything else is a wrong byte.
//
// Sessions. A prompt that goes on from the last prompt of its session is saved to the same session
// of the store; one that does not begins a new one, so that the older branch stays known, as it
// does in the virtual run.
//
// Not thread-safe; calls block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/kv_store.h"
#include "simulator.h"
#include "trace.h"

namespace turnkeep::replay {

enum class RealIdentity : uint8_t { kTokens, kHashes };

struct RealOptions {
  uint32_t bytes_per_token = 64;  // a multiple of 4
  RealIdentity identity = RealIdentity::kTokens;
  std::string run_name = "replay";  // of the sessions and the layout's revision
  bool keep_sessions = false;       // else they are dropped at the end
};

struct RealCounts {
  uint64_t verified_bytes = 0;
  uint64_t wrong_bytes = 0;
  uint64_t damaged_pages = 0;  // the store itself found them damaged, and they became misses
  uint64_t saved_bytes = 0;
  uint64_t short_saves = 0;  // accepted for less than the prompt, for want of room
  std::vector<float> restore_s;
  std::vector<float> save_s;
  std::string first_wrong;  // where the first wrong byte was
};

class RealStore : public RequestStore {
 public:
  // InvalidArgument: the trace or the options cannot be replayed. Trace and store outlive it.
  static absl::StatusOr<std::unique_ptr<RealStore>> Open(const Trace& trace,
                                                         const RealOptions& options,
                                                         KvStore* store);

  // Bytes of the slot that a whole block takes in the store.
  uint64_t slot_bytes() const;
  absl::StatusOr<Found> Restore(uint32_t request) override;
  absl::Status Save(uint32_t request) override;
  // Drops the sessions, unless they are kept.
  absl::Status Finish();
  const RealCounts& counts() const { return counts_; }

 private:
  struct Session {
    std::string name;
    uint64_t generation = 0;
    uint32_t branches = 0;
    uint32_t last_request = kNone;
  };
  // What the store is asked with. Borrowed from the members below until the next Describe.
  Prompt Describe(uint32_t request);
  bool GoesOn(uint32_t from, uint32_t to) const;
  uint64_t TokensOf(const TraceRequest& request) const;
  absl::Status ReadSpan(RestoreTicket& ticket, size_t span, uint32_t layer);
  void Fill(uint32_t block, uint32_t layer, uint32_t token_count, std::span<std::byte> page) const;
  void NoteWrong(uint32_t block, uint32_t layer, std::span<const std::byte> got,
                 std::span<const std::byte> want);

  RealStore(const Trace& trace, const RealOptions& options, KvStore* store)
      : trace_(trace), options_(options), store_(*store) {}

  const Trace& trace_;
  const RealOptions options_;
  KvStore& store_;
  KvLayout layout_;
  Fingerprint fingerprint_;
  std::vector<Session> sessions_;
  std::vector<std::string> names_;  // of the store's sessions
  RealCounts counts_;
  // Of the request described last.
  std::vector<uint32_t> blocks_;
  std::vector<uint32_t> tokens_;
  std::vector<BlockHash> hashes_;
  std::vector<std::byte> got_, want_;
};

// `requests` of the trace's blocks as the KvStore keeps them: `bytes_per_token` over one or four
// layers.
absl::StatusOr<KvLayout> RealLayout(const Trace& trace, const RealOptions& options);

}  // namespace turnkeep::replay
