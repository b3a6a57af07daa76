#include "optimum.h"

#include <algorithm>
#include <deque>
#include <queue>
#include <utility>

namespace turnkeep::replay {

NextUses::NextUses(const Trace& trace, std::span<const uint32_t> order) {
  std::vector<uint32_t> user(trace.block_count, kNone);  // the next one to use a block
  begins_.resize(order.size() + 1);
  for (size_t position = order.size(); position-- > 0;) {
    begins_[position + 1] = runs_.size();
    for (const BlockRun& run : trace.RunsOf(trace.requests[order[position]])) {
      for (uint32_t block = run.first; block < run.first + run.count; ++block) {
        uint32_t& next = user[block];
        if (runs_.size() > begins_[position + 1] && runs_.back().next == next) {
          ++runs_.back().count;
        } else {
          runs_.push_back({1, next});
        }
        next = static_cast<uint32_t>(position);
      }
    }
    begins_[position] = runs_.size();
  }
}

uint64_t OptimalHits(const NextUses& uses, uint64_t capacity_blocks, size_t first_counted) {
  std::vector<uint64_t> cached(uses.size());  // blocks that this request is the next to use
  std::priority_queue<uint32_t> furthest;     // requests with cached blocks; may be stale
  uint64_t used = 0;
  uint64_t hits = 0;
  for (size_t position = 0; position < uses.size(); ++position) {
    if (position >= first_counted) hits += cached[position];
    used -= cached[position];
    cached[position] = 0;
    for (const NextUses::Run& run : uses.Of(position)) {
      if (run.next == kNone) continue;  // not worth its place
      if (cached[run.next] == 0) furthest.push(run.next);
      cached[run.next] += run.count;
      used += run.count;
    }
    while (used > capacity_blocks) {
      const uint32_t last = furthest.top();
      const uint64_t gone = std::min(cached[last], used - capacity_blocks);
      cached[last] -= gone;
      used -= gone;
      if (cached[last] == 0) furthest.pop();
    }
    while (!furthest.empty() && furthest.top() <= position) furthest.pop();
  }
  return hits;
}

uint64_t PeakLiveBlocks(const NextUses& uses) {
  std::vector<uint64_t> cached(uses.size());
  uint64_t live = 0;
  uint64_t peak = 0;
  for (size_t position = 0; position < uses.size(); ++position) {
    live -= cached[position];
    for (const NextUses::Run& run : uses.Of(position)) {
      if (run.next == kNone) continue;
      cached[run.next] += run.count;
      live += run.count;
    }
    peak = std::max(peak, live);
  }
  return peak;
}

uint64_t PeakUnexpiredBlocks(const NextUses& uses, std::span<const double> times_s, double ttl_s) {
  std::vector<uint64_t> reused(uses.size());  // blocks whose next use, in time, is this request's
  std::deque<std::pair<double, uint64_t>> expiring;
  uint64_t live = 0;
  uint64_t peak = 0;
  for (size_t position = 0; position < uses.size(); ++position) {
    for (; !expiring.empty() && expiring.front().first < times_s[position]; expiring.pop_front())
      live -= expiring.front().second;
    live -= reused[position];
    const double end = times_s[position] + ttl_s;
    uint64_t last = 0;
    for (const NextUses::Run& run : uses.Of(position)) {
      const bool in_time = run.next != kNone && times_s[run.next] <= end;
      (in_time ? reused[run.next] : last) += run.count;
      live += run.count;
    }
    expiring.emplace_back(end, last);
    peak = std::max(peak, live);
  }
  return peak;
}

uint64_t PeakSessionBlocks(const Trace& trace, std::span<const uint32_t> order) {
  std::vector<uint32_t> last_turns(trace.session_count);
  for (uint32_t position = 0; position < order.size(); ++position) {
    last_turns[trace.requests[order[position]].session] = position;
  }
  std::vector<uint32_t> ends(trace.block_count);   // the position of the last turn, and one more
  std::vector<int64_t> changes(order.size() + 1);  // of the live blocks, by position
  for (uint32_t position = 0; position < order.size(); ++position) {
    const TraceRequest& request = trace.requests[order[position]];
    const uint32_t end = last_turns[request.session] + 1;
    for (const BlockRun& run : trace.RunsOf(request)) {
      for (uint32_t block = run.first; block < run.first + run.count; ++block) {
        if (ends[block] >= end) continue;
        // It died before, or lives on.
        const uint32_t from = std::max(ends[block], position);
        ++changes[from];
        --changes[end];
        ends[block] = end;
      }
    }
  }
  int64_t live = 0;
  int64_t peak = 0;
  for (const int64_t change : changes) peak = std::max(peak, live += change);
  return static_cast<uint64_t>(peak);
}

}  // namespace turnkeep::replay
