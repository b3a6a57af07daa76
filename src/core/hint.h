// Hints: what an engine's scheduler knows of the future. Advice: a hint is never an error for
// the engine, and each item is answered by itself. docs/policies.md has the mapping to vLLM's
// KV-hint envelope. Plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/time/time.h>

#include "core/ids.h"
#include "core/kv_types.h"
#include "core/limits.h"

namespace turnkeep {

// Why the turn ended that used a chunk last: what an engine can tell of when the next comes.
enum class StopReason : uint8_t { kUnknown = 0, kEndTurn, kToolUse, kLength };
inline constexpr size_t kStopReasons = 4;

enum class HintAction : uint8_t {
  kShare = 0,     // others will use it too (chunks are shared by content in any case)
  kPrefetch = 1,  // bring it to host memory: used in `expected_in` (unset: next)
  kDemote = 2,    // not used for long: give its room in host memory away
  kPin = 3,       // as PinSession; sessions only
  kUnpin = 4,
  kRetain = 5,    // evict it after what has a lower `priority`, until `ttl` is over
  kExpect = 6,    // its next use: `stop`, a time (`expected_in` or `expected_times`), or both
  kDropSoon = 7,  // nobody will use it: it goes first, and unwritten if it is not on disk
};
inline constexpr size_t kHintActions = 8;

// A session, or without a name a prefix of `layout`: its tokens, or the engine's hash of each
// chunk, as in Prompt.
struct HintTarget {
  std::string session;
  std::vector<uint32_t> tokens;
  std::vector<BlockHash> block_hashes;
  uint64_t hashed_token_count = 0;
  Fingerprint layout;
  uint64_t max_tokens = kMaxSessionTokens;  // leading tokens of it that are meant

  Prompt prompt() const { return {tokens, block_hashes, hashed_token_count}; }  // borrows
};

struct HintItem {
  HintAction action = HintAction::kExpect;
  HintTarget target;
  std::optional<absl::Duration> expected_in;  // time to the next use
  // Its distribution, as equally likely times, kMaxExpectedTimes at most. What counts is the
  // median of those that are still to come.
  std::vector<absl::Duration> expected_times;
  StopReason stop = StopReason::kUnknown;
  std::optional<absl::Duration> ttl;  // kRetain: from now on; unset: until it is said again
  int32_t priority = 1;               // kRetain: 1 to kMaxRetainPriority; 0 ends it
};
inline constexpr size_t kMaxExpectedTimes = 64;
inline constexpr int32_t kMaxRetainPriority = 3;

// A request in the engine's waiting queue.
struct WaitingRequest {
  HintTarget target;
  absl::Duration waited = absl::ZeroDuration();  // since it arrived; orders equal priorities
  int32_t priority = 0;                          // the higher is served sooner
};

// What the engine takes for a token in a layout, so that a restore that would take longer can be
// declined. Counts until it is told again; 0: unknown, nothing is declined.
struct EngineSpeed {
  Fingerprint layout;
  double prefill_tokens_per_s = 0;  // at the start of a context
  // The context at which a token takes twice as long as at the start, since attention costs as much
  // there as everything else: FLOP a token without attention ÷ (4 x layers x query heads x head
  // dim). 0: every token takes as long as the first.
  double prefill_half_speed_tokens = 0;
  // At what rate it takes KV out of host memory; 0: that of a verified copy on the store's machine.
  double copy_bytes_per_s = 0;
};

struct HintRequest {
  // Replaces the tenant's waiting queue, in the order of service; unset: as before. Of equal
  // priority and waiting time the order given counts. A request leaves the queue when its
  // session is restored, and with the next queue.
  std::optional<std::vector<WaitingRequest>> queue;
  std::vector<HintItem> items;
  std::vector<EngineSpeed> speeds;
};
inline constexpr size_t kMaxHintItems = 16384;  // of queue, items and speeds together

enum class HintOutcome : uint8_t {
  kAccepted = 0,
  kClipped = 1,   // in part; the reason says which
  kDeferred = 2,  // later, when there is room
  kRejected = 3,  // not possible here
  kMissing = 4,   // nothing is stored of it
};

struct HintAnswer {
  HintOutcome outcome = HintOutcome::kAccepted;
  std::string reason;  // empty when accepted without more to say
};

struct HintReply {
  std::vector<HintAnswer> queue;   // by HintRequest::queue
  std::vector<HintAnswer> items;   // by HintRequest::items
  std::vector<HintAnswer> speeds;  // by HintRequest::speeds
};

std::string_view NameOf(HintAction action);    // "prefetch"
std::string_view NameOf(HintOutcome outcome);  // "accepted"
std::string_view NameOf(StopReason reason);    // "tool_use"
std::optional<HintAction> HintActionOf(std::string_view name);
std::optional<StopReason> StopReasonOf(std::string_view name);

// Every item answered alike: what stands between the engine and the store.
HintReply AnswerAll(const HintRequest& request, HintOutcome outcome, const std::string& reason);

}  // namespace turnkeep
