// Where the daemon and its sockets are when nobody says otherwise: everything under one
// folder. Used by turnkeepd, by the CLI and by engines that want the default daemon.
//
// Thread-safety: reads the environment; do not call while another thread changes it.
#pragma once

#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace turnkeep {

// $TURNKEEP_DIR, else $XDG_DATA_HOME/turnkeep, else $HOME/.local/share/turnkeep.
// FailedPrecondition when none of them is set.
absl::StatusOr<std::string> DefaultDir();

// "<dir>/turnkeep.sock", "<dir>/admin.sock", "<dir>/data".
std::string SocketPathIn(const std::string& dir);
std::string AdminSocketPathIn(const std::string& dir);
std::string DataDirIn(const std::string& dir);

// The kernel's limit on the length of a Unix socket's path.
inline constexpr size_t kMaxSocketPathBytes = 107;
// InvalidArgument naming `what`, the path and its length.
absl::Status CheckSocketPath(const std::string& what, const std::string& path);

// An address "127.0.0.1:7411" or "[::1]:7411" ("localhost:7411" is 127.0.0.1).
struct LoopbackAddress {
  std::string host;   // numeric
  uint16_t port = 0;  // 0: the system chooses
  bool v6 = false;
};
// InvalidArgument names `what` and the text; wildcards and addresses that other machines
// can reach are refused.
absl::StatusOr<LoopbackAddress> ParseLoopbackAddress(const std::string& what,
                                                     const std::string& text);

}  // namespace turnkeep
