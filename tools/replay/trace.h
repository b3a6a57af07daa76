// A request trace: what an inference server was asked, in order of time, with the prefix
// blocks of every prompt. The readers and the generator make it, the simulator and the
// optimum read it.
//
// Blocks are numbered densely from 0. A number stands for a block *and everything before
// it*: it has one parent, as a ChunkId has. TraceBuilder sees to that, whatever the ids of
// the source mean. So a stored block is useless without its parent, and the next use of a
// parent is never later than its child's.
//
// Thread-compatible.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>

namespace turnkeep::replay {

inline constexpr uint32_t kNone = 0xFFFFFFFFu;

// Why the answer to a request ended: what an engine can tell of when the next turn comes.
enum class StopReason : uint8_t { kUnknown = 0, kEndTurn, kToolUse, kLength };
StopReason ParseStopReason(const std::string& text);

// `count` consecutive block numbers from `first`.
struct BlockRun {
  uint32_t first = 0;
  uint32_t count = 0;
};

struct TraceRequest {
  double time_s = 0;       // of arrival; in a closed loop only for a session's first turn
  double think_s = 0;      // closed loop: from the end of the turn before to this arrival
  double service_s = 0;    // how long the source's server took; 0: not recorded
  uint64_t first_run = 0;  // in Trace::runs
  uint32_t run_count = 0;
  uint32_t session = 0;
  uint32_t turn = 0;          // in its session, from 0
  uint32_t input_tokens = 0;  // the whole prompt
  uint32_t output_tokens = 0;
  uint32_t block_count = 0;
  uint32_t next_turn = kNone;  // index of the session's next request
  // Leading tokens that an earlier turn of the session could have left behind; only with
  // Trace::whole_sessions, where blocks do not say it.
  uint32_t history_tokens = 0;
  StopReason stop = StopReason::kUnknown;
};

struct Trace {
  std::string name;
  uint32_t block_tokens = 0;
  std::vector<TraceRequest> requests;  // by time
  std::vector<BlockRun> runs;
  uint32_t block_count = 0;  // distinct
  uint32_t session_count = 0;
  uint64_t reference_count = 0;  // blocks of all prompts
  uint64_t bad_lines = 0;        // skipped
  // A turn arrives some think time after the answer before it; else at its time_s.
  bool closed_loop = false;
  // Every session is one block, as long as its last prompt and answer (CachedAttention's item).
  bool whole_sessions = false;

  std::span<const BlockRun> RunsOf(const TraceRequest& request) const {
    return {runs.data() + request.first_run, request.run_count};
  }
};

// Collects requests in any order of time.
class TraceBuilder {
 public:
  TraceBuilder(std::string name, uint32_t block_tokens);

  // A run of the source's own ids.
  struct SourceRun {
    uint64_t first = 0;
    uint64_t count = 0;
  };

  // The ids that follow mean nothing to those before.
  void BeginScope();
  uint32_t NewSession() { return trace_.session_count++; }
  // Takes everything of `request` but its blocks. ResourceExhausted past 2^32 - 2 blocks.
  absl::Status Add(const TraceRequest& request, std::span<const SourceRun> runs);
  // `count` blocks that no other request has.
  absl::Status AddUnshared(const TraceRequest& request, uint32_t count);
  void CountBadLine() { ++trace_.bad_lines; }
  // Sorts by time and links the turns.
  Trace Finish() &&;

 private:
  uint32_t Intern(uint32_t parent, uint64_t id);

  Trace trace_;
  // Of this scope, by id of the source: the block, when it has the parent that was seen
  // first; ids below kDirectIds by index.
  std::vector<uint32_t> direct_;
  absl::flat_hash_map<uint64_t, uint32_t> sparse_;
  absl::flat_hash_map<std::pair<uint32_t, uint64_t>, uint32_t> other_parents_;
  std::vector<uint32_t> parents_;  // by block
};

// Leaves out all but the first `count` requests; block numbers stay.
void KeepFirst(uint64_t count, Trace* trace);

// The same requests with blocks of `chunk_tokens`, a multiple of the trace's own; what a
// prompt has beyond its last whole chunk is left out.
Trace Regroup(const Trace& trace, uint32_t chunk_tokens);

}  // namespace turnkeep::replay
