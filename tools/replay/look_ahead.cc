#include "look_ahead.h"

#include <algorithm>
#include <numeric>

namespace turnkeep::replay {

namespace {

std::vector<uint32_t> InOrder(const Trace& trace) {
  std::vector<uint32_t> order(trace.requests.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

template <typename Visit>
void ForEachBlock(std::span<const BlockRun> runs, const Visit& visit) {
  for (const BlockRun& run : runs)
    for (uint32_t i = 0; i < run.count; ++i) visit(run.first + i);
}

}  // namespace

TraceLookAhead::TraceLookAhead(const Trace& trace, uint64_t window, Cache* cache)
    : trace_(trace),
      window_(window),
      cache_(*cache),
      uses_(trace, InOrder(trace)),
      pending_(trace.block_count) {}

void TraceLookAhead::Before(uint32_t index) {
  const uint64_t end = std::min<uint64_t>(trace_.requests.size(), index + window_ + 1);
  for (; entered_ < end; ++entered_) {
    ForEachBlock(trace_.RunsOf(trace_.requests[entered_]), [&](uint32_t block) {
      if (pending_[block]) return;  // an earlier request of the window uses it
      pending_[block] = true;
      cache_.Expect({block, 1}, static_cast<int64_t>(entered_));
    });
  }
}

void TraceLookAhead::After(uint32_t index) {
  const auto uses = uses_.Of(index);
  size_t use = 0;
  uint32_t left = uses.empty() ? 0 : uses[0].count;
  ForEachBlock(trace_.RunsOf(trace_.requests[index]), [&](uint32_t block) {
    while (left == 0) left = uses[++use].count;
    --left;
    const uint32_t next = uses[use].next;
    pending_[block] = next != kNone && next < entered_;
    cache_.Expect({block, 1}, pending_[block] ? static_cast<int64_t>(next) : kNoExpectedUse);
  });
}

void QueueLookAhead::Arrived(uint32_t request) {
  const int64_t place = places_++;
  for (const BlockRun& run : trace_.RunsOf(trace_.requests[request])) cache_.Expect(run, place);
}

void QueueLookAhead::MayPrefetch(uint32_t request, double now_s) {
  if (request >= asked_.size()) asked_.resize(trace_.requests.size());
  if (asked_[request]) return;
  uint64_t bytes = cache_.DiskOnlyBytes(trace_.RunsOf(trace_.requests[request]));
  if (bytes == 0) return;
  if (trace_.whole_sessions) {  // what it holds, whatever room it has
    bytes = trace_.requests[request].history_tokens * kv_bytes_per_token_;
  }
  asked_[request] = true;
  disk_free_s_ = std::max(disk_free_s_, now_s) + static_cast<double>(bytes) / disk_bytes_per_s_;
  running_.push_back({request, disk_free_s_});
}

void QueueLookAhead::Complete(double now_s) {
  while (!running_.empty() && running_.front().ready_s <= now_s) {
    const uint32_t request = running_.front().request;
    running_.pop_front();
    brought_.resize(trace_.requests.size());
    brought_[request] =
        cache_.Promote(trace_.RunsOf(trace_.requests[request]), static_cast<int64_t>(now_s * 1e9));
    prefetched_blocks_ += brought_[request];
  }
}

void QueueLookAhead::Served(uint32_t request) {
  for (const BlockRun& run : trace_.RunsOf(trace_.requests[request]))
    cache_.Expect(run, kNoExpectedUse);
}

}  // namespace turnkeep::replay
