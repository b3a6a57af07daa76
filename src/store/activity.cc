// What goes on: the hinted queue, the windows, and the placement's last decisions.
#include <algorithm>

#include "core/status.h"
#include "core/units.h"
#include "store/store_impl.h"

namespace turnkeep {

Activity StoreImpl::GetActivity(TenantNumber tenant, const ActivityRequest& request) {
  Activity activity;
  absl::MutexLock lock(&state_.mu);
  const auto number = static_cast<uint16_t>(tenant);
  std::vector<std::pair<int64_t, const Expectations::Name*>> order;
  for (const auto& [name, entry] : expectations_.all()) {
    if (name.tenant == number) order.emplace_back(entry.when.next_use, &name);
  }
  activity.expected_count = order.size();
  const size_t shown = std::min<size_t>(request.limit, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(shown), order.end());
  const int64_t now_ns = state_.NowNs();
  for (size_t i = 0; i < shown; ++i) {
    const auto& [next_use, name] = order[i];
    ExpectedUse use{.target = (name->what[0] == 's' ? "" : "prefix ") + name->what.substr(1),
                    .queued = name->source == Expectations::Source::kQueue,
                    .due_in_s = static_cast<double>(next_use - now_ns) * 1e-9};
    for (const ChunkIndex chunk : expectations_.Find(*name)->chunks) {
      const ChunkEntry& entry = state_.catalog[chunk];
      const uint64_t slot_bytes = entry.slot_blocks * kBlockBytes;
      if (entry.InHost()) use.host_bytes += slot_bytes;
      if (!entry.InHost() && !entry.disk.IsNull()) use.disk_bytes += slot_bytes;
      if (state_.placement.Prefetching(chunk)) use.prefetching_bytes += slot_bytes;
    }
    activity.expected.push_back(std::move(use));
  }
  const Placement::PrefetchUsage prefetch = state_.placement.prefetch();
  activity.fetch_window_bytes = static_cast<uint64_t>(
      static_cast<double>(state_.options.host_bytes) * state_.options.prefetch_share);
  activity.prefetch_in_flight_bytes = prefetch.in_flight_bytes;
  activity.prefetch_unused_bytes = prefetch.unused_bytes;
  activity.prefetch_waiting_chunks = prefetch.waiting_count;
  activity.eviction_window_bytes =
      state_.options.host_bytes + (state_.has_disk() ? state_.options.disk_bytes : 0);
  for (const Decision& decision : state_.decisions.After(number, request.after, request.limit)) {
    activity.events.push_back({.number = decision.number,
                               .unix_s = decision.unix_s,
                               .what = std::string(WhatOf(decision)),
                               .chunk = decision.chunk.ShortHex(),
                               .slot_bytes = decision.slot_bytes,
                               .why = WhyOf(decision, state_.options.policy)});
  }
  activity.last_event = state_.decisions.last_number();
  return activity;
}

}  // namespace turnkeep
