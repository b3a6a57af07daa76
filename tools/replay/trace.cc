#include "trace.h"

#include <algorithm>

#include "core/status.h"

namespace turnkeep::replay {
namespace {

constexpr uint64_t kDirectIds = uint64_t{1} << 22;

void AppendBlock(std::vector<BlockRun>* runs, size_t begin, uint32_t block) {
  if (runs->size() > begin && runs->back().first + runs->back().count == block) {
    ++runs->back().count;
  } else {
    runs->push_back({block, 1});
  }
}

}  // namespace

StopReason ParseStopReason(const std::string& text) {
  if (text == "end_turn" || text == "stop" || text == "stop_sequence") return StopReason::kEndTurn;
  if (text == "tool_use" || text == "tool_calls") return StopReason::kToolUse;
  if (text == "max_tokens" || text == "length") return StopReason::kLength;
  return StopReason::kUnknown;
}

TraceBuilder::TraceBuilder(std::string name, uint32_t block_tokens) {
  trace_.name = std::move(name);
  trace_.block_tokens = block_tokens;
}

void TraceBuilder::BeginScope() {
  direct_.clear();
  sparse_.clear();
  other_parents_.clear();
}

uint32_t TraceBuilder::Intern(uint32_t parent, uint64_t id) {
  uint32_t* slot = nullptr;
  if (id < kDirectIds) {
    if (id >= direct_.size()) direct_.resize(id + 1 + id / 2, kNone);
    slot = &direct_[id];
  } else {
    slot = &sparse_.try_emplace(id, kNone).first->second;
  }
  if (*slot != kNone && parents_[*slot] != parent) {
    slot = &other_parents_.try_emplace({parent, id}, kNone).first->second;
  }
  if (*slot == kNone) {
    *slot = trace_.block_count++;
    parents_.push_back(parent);
  }
  return *slot;
}

absl::Status TraceBuilder::Add(const TraceRequest& request, std::span<const SourceRun> runs) {
  TraceRequest added = request;
  added.first_run = trace_.runs.size();
  added.block_count = 0;
  uint64_t total = 0;
  for (const SourceRun& run : runs) total += run.count;
  if (total >= kNone - trace_.block_count) {
    return ResourceExhausted("trace {}: more than 2^32 blocks", trace_.name);
  }
  uint32_t parent = kNone;
  for (const SourceRun& run : runs) {
    for (uint64_t i = 0; i < run.count; ++i) {
      parent = Intern(parent, run.first + i);
      AppendBlock(&trace_.runs, added.first_run, parent);
    }
  }
  added.block_count = static_cast<uint32_t>(total);
  added.run_count = static_cast<uint32_t>(trace_.runs.size() - added.first_run);
  trace_.reference_count += total;
  trace_.requests.push_back(added);
  return absl::OkStatus();
}

absl::Status TraceBuilder::AddUnshared(const TraceRequest& request, uint32_t count) {
  if (count >= kNone - trace_.block_count) {
    return ResourceExhausted("trace {}: more than 2^32 blocks", trace_.name);
  }
  TraceRequest added = request;
  added.first_run = trace_.runs.size();
  added.block_count = count;
  added.run_count = count > 0 ? 1 : 0;
  if (count > 0) trace_.runs.push_back({trace_.block_count, count});
  trace_.block_count += count;
  // No id of the source leads here; the parents only have to be as many as the blocks.
  parents_.resize(trace_.block_count, kNone);
  trace_.reference_count += count;
  trace_.requests.push_back(added);
  return absl::OkStatus();
}

Trace TraceBuilder::Finish() && {
  std::stable_sort(
      trace_.requests.begin(), trace_.requests.end(),
      [](const TraceRequest& a, const TraceRequest& b) { return a.time_s < b.time_s; });
  std::vector<uint32_t> last(trace_.session_count, kNone);
  for (uint32_t i = 0; i < trace_.requests.size(); ++i) {
    TraceRequest& request = trace_.requests[i];
    uint32_t& before = last[request.session];
    if (before != kNone) {
      request.turn = trace_.requests[before].turn + 1;
      trace_.requests[before].next_turn = i;
    }
    before = i;
  }
  return std::move(trace_);
}

void KeepFirst(uint64_t count, Trace* trace) {
  if (count >= trace->requests.size()) return;
  trace->requests.resize(count);
  trace->reference_count = 0;
  for (TraceRequest& request : trace->requests) {
    trace->reference_count += request.block_count;
    if (request.next_turn != kNone && request.next_turn >= count) request.next_turn = kNone;
  }
}

Trace Regroup(const Trace& trace, uint32_t chunk_tokens) {
  const uint32_t group = chunk_tokens / trace.block_tokens;
  if (group <= 1) return trace;
  Trace out;
  out.name = trace.name;
  out.block_tokens = trace.block_tokens * group;
  out.session_count = trace.session_count;
  out.bad_lines = trace.bad_lines;
  out.requests = trace.requests;
  // The last block of a group stands for the group, since it stands for all before it.
  std::vector<uint32_t> chunk_of(trace.block_count, kNone);
  for (TraceRequest& request : out.requests) {
    const auto runs = trace.RunsOf(request);
    request.first_run = out.runs.size();
    request.block_count = 0;
    uint64_t position = 0;
    for (const BlockRun& run : runs) {
      const uint64_t skip = group - 1 - position % group;
      for (uint64_t i = skip; i < run.count; i += group) {
        uint32_t& chunk = chunk_of[run.first + i];
        if (chunk == kNone) chunk = out.block_count++;
        AppendBlock(&out.runs, request.first_run, chunk);
        ++request.block_count;
      }
      position += run.count;
    }
    request.run_count = static_cast<uint32_t>(out.runs.size() - request.first_run);
    out.reference_count += request.block_count;
  }
  return out;
}

}  // namespace turnkeep::replay
