// Connecting to the daemon with plain sockets: a deadline, and errors that say what to do.
//
// Thread-safety: pure functions. Blocking until connected or the deadline.
#pragma once

#include <string>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "api/paths.h"
#include "api/unique_fd.h"

namespace turnkeep {

// Unavailable: nobody listens there, or no answer in time. PermissionDenied: the socket or
// its folder is not ours to use. The descriptor is non-blocking and close-on-exec.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, absl::Time deadline);
absl::StatusOr<UniqueFd> ConnectLoopback(const LoopbackAddress& address, absl::Time deadline);

// Waits for `events` (poll's) on `fd`; DeadlineExceeded.
absl::Status WaitForFd(int fd, short events, absl::Time deadline);

}  // namespace turnkeep
