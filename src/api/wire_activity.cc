// Activity to and from its message.
#include "api/wire_messages.h"

namespace turnkeep::wire {

void ToWire(const turnkeep::Activity& activity, Activity* out) {
  for (const turnkeep::ExpectedUse& use : activity.expected) {
    ExpectedUse* to = out->add_expected();
    to->set_target(use.target);
    to->set_queued(use.queued);
    to->set_due_in_s(use.due_in_s);
    to->set_host_bytes(use.host_bytes);
    to->set_disk_bytes(use.disk_bytes);
    to->set_prefetching_bytes(use.prefetching_bytes);
  }
  out->set_expected_count(activity.expected_count);
  out->set_fetch_window_bytes(activity.fetch_window_bytes);
  out->set_prefetch_in_flight_bytes(activity.prefetch_in_flight_bytes);
  out->set_prefetch_unused_bytes(activity.prefetch_unused_bytes);
  out->set_prefetch_waiting_chunks(activity.prefetch_waiting_chunks);
  out->set_eviction_window_bytes(activity.eviction_window_bytes);
  for (const turnkeep::ActivityEvent& event : activity.events) {
    ActivityEvent* to = out->add_events();
    to->set_number(event.number);
    to->set_unix_s(event.unix_s);
    to->set_what(event.what);
    to->set_chunk(event.chunk);
    to->set_slot_bytes(event.slot_bytes);
    to->set_why(event.why);
  }
  out->set_last_event(activity.last_event);
}

turnkeep::Activity FromWire(const Activity& message) {
  turnkeep::Activity activity{.expected_count = message.expected_count(),
                              .fetch_window_bytes = message.fetch_window_bytes(),
                              .prefetch_in_flight_bytes = message.prefetch_in_flight_bytes(),
                              .prefetch_unused_bytes = message.prefetch_unused_bytes(),
                              .prefetch_waiting_chunks = message.prefetch_waiting_chunks(),
                              .eviction_window_bytes = message.eviction_window_bytes(),
                              .last_event = message.last_event()};
  for (const ExpectedUse& from : message.expected()) {
    activity.expected.push_back({.target = from.target(),
                                 .queued = from.queued(),
                                 .due_in_s = from.due_in_s(),
                                 .host_bytes = from.host_bytes(),
                                 .disk_bytes = from.disk_bytes(),
                                 .prefetching_bytes = from.prefetching_bytes()});
  }
  for (const ActivityEvent& from : message.events()) {
    activity.events.push_back({.number = from.number(),
                               .unix_s = from.unix_s(),
                               .what = from.what(),
                               .chunk = from.chunk(),
                               .slot_bytes = from.slot_bytes(),
                               .why = from.why()});
  }
  return activity;
}

}  // namespace turnkeep::wire
