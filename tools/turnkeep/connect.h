// Finding and reaching the daemon.
#pragma once

#include <string>

#include <absl/status/statusor.h>

#include "environment.h"

namespace turnkeep {

// Where the daemon's socket is: --socket, --dir, $TURNKEEP_SOCKET, the default folder; the
// first that is given. InvalidArgument when both --socket and --dir are, or the path is too long.
absl::StatusOr<std::string> ResolveSocket(const GlobalOptions& global);

// Unavailable: the message says where nobody answers and what to start.
absl::StatusOr<Connection> ConnectToDaemon(const GlobalOptions& global);

}  // namespace turnkeep
