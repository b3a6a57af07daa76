#include "api/status_json.h"

#include <utility>

namespace turnkeep {

Json ToJson(const TierStatus& tier) {
  return {{"capacity_bytes", tier.capacity_bytes}, {"reserved_bytes", tier.reserved_bytes},
          {"used_bytes", tier.used_bytes},         {"pinned_bytes", tier.pinned_bytes},
          {"chunk_count", tier.chunk_count},       {"description", tier.description}};
}

Json ToJson(const Activity& activity) {
  Json expected = Json::array();
  for (const ExpectedUse& use : activity.expected) {
    expected.push_back({{"target", use.target},
                        {"queued", use.queued},
                        {"due_in_s", use.due_in_s},
                        {"host_bytes", use.host_bytes},
                        {"disk_bytes", use.disk_bytes},
                        {"prefetching_bytes", use.prefetching_bytes}});
  }
  Json events = Json::array();
  for (const ActivityEvent& event : activity.events) {
    events.push_back({{"number", event.number},
                      {"unix_s", event.unix_s},
                      {"what", event.what},
                      {"chunk", event.chunk},
                      {"slot_bytes", event.slot_bytes},
                      {"why", event.why}});
  }
  return {{"expected", std::move(expected)},
          {"expected_count", activity.expected_count},
          {"fetch_window_bytes", activity.fetch_window_bytes},
          {"prefetch_in_flight_bytes", activity.prefetch_in_flight_bytes},
          {"prefetch_unused_bytes", activity.prefetch_unused_bytes},
          {"prefetch_waiting_chunks", activity.prefetch_waiting_chunks},
          {"eviction_window_bytes", activity.eviction_window_bytes},
          {"events", std::move(events)},
          {"last_event", activity.last_event}};
}

std::string Dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace turnkeep
