// Listening sockets of the daemon.
//
// Thread-safety: pure functions; two daemons that start at once are kept apart by a lock
// file beside the socket.
#pragma once

#include <string>

#include <absl/status/statusor.h>

#include "api/paths.h"
#include "api/unique_fd.h"

namespace turnkeep {

// A listening Unix socket with its file. The destructor removes the file.
class UnixListener {
 public:
  // Makes the socket's folder (0700) if it is missing, refuses one that others can write to,
  // and replaces a socket file on which nobody answers. AlreadyExists: somebody does.
  static absl::StatusOr<UnixListener> Open(const std::string& what, const std::string& path);
  UnixListener(UnixListener&&) noexcept = default;
  UnixListener& operator=(UnixListener&&) = delete;
  ~UnixListener();

  // Hands the descriptor over (to Asio); the file is still removed by the destructor.
  int ReleaseFd() { return fd_.Release(); }
  const std::string& path() const { return path_; }

 private:
  UnixListener(UniqueFd fd, UniqueFd lock, std::string path)
      : fd_(std::move(fd)), lock_(std::move(lock)), path_(std::move(path)) {}
  UniqueFd fd_;
  UniqueFd lock_;
  std::string path_;
};

}  // namespace turnkeep
