#include "api/socket_connect.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/status.h"

namespace turnkeep {

namespace {

constexpr int kSocketBufferBytes = 1 << 20;

absl::StatusOr<UniqueFd> NewSocket(int family) {
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "create a socket");
  // A larger buffer lets a plan or a prompt pass in one piece; the kernel may give less.
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof(int));
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kSocketBufferBytes, sizeof(int));
  return fd;
}

absl::Status ConnectError(int error, const std::string& name) {
  if (error == EACCES || error == EPERM) {
    return PermissionDenied("connect to {}: {}", name, std::strerror(error));
  }
  return Unavailable("connect to {}: {}; is turnkeepd running?", name, std::strerror(error));
}

absl::Status Connect(int fd, const sockaddr* address, socklen_t length, const std::string& name,
                     absl::Time deadline) {
  // A Unix socket whose backlog is full answers EAGAIN and has nothing to poll for.
  while (::connect(fd, address, length) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
      continue;
    }
    if (errno != EINPROGRESS) return ConnectError(errno, name);
    if (!WaitForFd(fd, POLLOUT, deadline).ok()) return ConnectError(ETIMEDOUT, name);
    int error = 0;
    socklen_t size = sizeof(error);
    if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    return error == 0 ? absl::OkStatus() : ConnectError(error, name);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WaitForFd(int fd, short events, absl::Time deadline) {
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
    int timeout_ms = -1;
    if (deadline != absl::InfiniteFuture()) {
      // Rounded up, so that a last poll of zero does not spin.
      timeout_ms = static_cast<int>(std::clamp<int64_t>(
          absl::ToInt64Milliseconds(left + absl::Microseconds(999)), 0, 3'600'000));
    }
    pollfd poll_fd{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&poll_fd, 1, timeout_ms);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll a socket");
    if (ready == 0 && absl::Now() >= deadline) return DeadlineExceeded("socket: not ready in time");
  }
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, absl::Time deadline) {
  TK_RETURN_IF_ERROR(CheckSocketPath("socket_path", path));
  TK_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(AF_UNIX));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  TK_RETURN_IF_ERROR(Connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address),
                             path, deadline));
  return fd;
}

absl::StatusOr<UniqueFd> ConnectLoopback(const LoopbackAddress& target, absl::Time deadline) {
  TK_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(target.v6 ? AF_INET6 : AF_INET));
  const int one = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  sockaddr_storage storage{};
  socklen_t length = 0;
  if (target.v6) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(target.port);
    ::inet_pton(AF_INET6, target.host.c_str(), &v6->sin6_addr);
    length = sizeof(*v6);
  } else {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(target.port);
    ::inet_pton(AF_INET, target.host.c_str(), &v4->sin_addr);
    length = sizeof(*v4);
  }
  TK_RETURN_IF_ERROR(Connect(fd.get(), reinterpret_cast<const sockaddr*>(&storage), length,
                             fmt::format("{}:{}", target.host, target.port), deadline));
  return fd;
}

}  // namespace turnkeep
