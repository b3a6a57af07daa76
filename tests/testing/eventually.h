// Waiting for other threads and processes.
#pragma once

#include <absl/time/clock.h>
#include <absl/time/time.h>

namespace turnkeep::testing {

// Waits, at most `limit`, until `condition` holds.
template <typename Condition>
bool Eventually(Condition condition, absl::Duration limit = absl::Seconds(10)) {
  const absl::Time end = absl::Now() + limit;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

}  // namespace turnkeep::testing
