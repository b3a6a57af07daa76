// A proxy between one client and the daemon that counts, holds and changes frames.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include "api/frame.h"
#include "api/socket_connect.h"
#include "api/turnkeep.pb.h"
#include "api/unique_fd.h"
#include "core/limits.h"

namespace turnkeep::testing {

// Passes frames between one client and the daemon. The first answer to a PAGE_READ is held until
// `wanted` of them have been asked for, or for five seconds; after `ends_after` answers the
// connection ends; `holds` keeps all answers to PAGE_READ back until Release. `alter` sees every
// frame before it goes on, from two threads, and may change it.
struct FrameProxyOptions {
  // The daemon's Unix socket: the proxy listens on one beside it, and passes descriptors of shared
  // memory on. Empty: TCP.
  std::string daemon_socket;
  int wanted = 1;
  int ends_after = 1 << 30;
  bool holds = false;
  std::function<void(const wire::FrameHeader&, std::vector<std::byte>& frame)> alter;
};
class FrameProxy {
 public:
  FrameProxy(uint16_t daemon_port, FrameProxyOptions options) : options_(std::move(options)) {
    if (socket().empty()) {
      ListenTcp();
    } else {
      ListenUnix();
    }
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    up_ = std::thread([this, daemon_port] { Run(daemon_port); });
  }
  // After the client has gone.
  ~FrameProxy() {
    up_.join();
    if (!socket().empty()) ::unlink(socket().c_str());
  }

  uint16_t port() const { return port_; }
  std::string socket() const {
    return options_.daemon_socket.empty() ? "" : options_.daemon_socket + ".proxy";
  }
  void Release() {
    absl::MutexLock lock(&mutex_);
    holds_ = false;
  }
  int in_flight() const {
    absl::MutexLock lock(&mutex_);
    return in_flight_;
  }
  int most_in_flight() const {
    absl::MutexLock lock(&mutex_);
    return most_in_flight_;
  }

  // For `alter`: what a frame carries, and another frame in its place.
  static std::string PayloadOf(const wire::FrameHeader& header,
                               const std::vector<std::byte>& frame) {
    return std::string(reinterpret_cast<const char*>(frame.data()) + wire::kFrameHeaderBytes,
                       header.payload_bytes);
  }
  static std::span<std::byte> RawOf(const wire::FrameHeader& header,
                                    std::vector<std::byte>& frame) {
    const uint64_t before = wire::FrameBytes(header.payload_bytes, 0);
    return std::span(frame).subspan(before, header.raw_bytes);
  }
  static void Replace(wire::FrameHeader header, const std::string& payload,
                      std::span<const std::byte> raw, std::vector<std::byte>& frame) {
    std::string bytes = wire::EncodeFrameHead(header, payload, raw.size());
    bytes.append(reinterpret_cast<const char*>(raw.data()), raw.size());
    bytes += wire::RawPadding(raw.size());
    const auto view = std::as_bytes(std::span(bytes));
    frame.assign(view.begin(), view.end());
  }

 private:
  void ListenTcp() {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    socklen_t bytes = sizeof(address);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
    port_ = ntohs(address.sin_port);
  }
  void ListenUnix() {
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
    const std::string path = socket();
    ASSERT_LT(path.size(), sizeof(address.sun_path));
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }

  void Run(uint16_t daemon_port) {
    client_ = UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    const bool tcp = socket().empty();
    const int on = 1;
    if (tcp) {
      EXPECT_EQ(::setsockopt(client_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), 0);
    }
    auto daemon = tcp ? ConnectLoopback({.host = "127.0.0.1", .port = daemon_port}, deadline)
                      : ConnectUnix(options_.daemon_socket, deadline);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    std::thread down([this] {
      Pass(daemon_.get(), client_.get(), /*replies=*/true);
      ::shutdown(client_.get(), SHUT_RDWR);
    });
    Pass(client_.get(), daemon_.get(), /*replies=*/false);
    ::shutdown(daemon_.get(), SHUT_RDWR);
    down.join();
  }

  static constexpr size_t kMaxFds = 64;

  // Descriptors that come with the bytes are added to `fds`.
  static bool ReadAll(int fd, std::byte* to, size_t bytes, std::vector<UniqueFd>& fds) {
    while (bytes > 0) {
      pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, -1) < 0) return false;
      alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
      iovec io{.iov_base = to, .iov_len = bytes};
      msghdr message{};
      message.msg_iov = &io;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      const ssize_t got = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
      if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
      if (got < 0) continue;
      for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        for (size_t at = 0; at + CMSG_LEN(0) < c->cmsg_len; at += sizeof(int)) {
          int received = -1;
          std::memcpy(&received, CMSG_DATA(c) + at, sizeof(int));
          fds.emplace_back(received);
        }
      }
      to += got;
      bytes -= static_cast<size_t>(got);
    }
    return true;
  }
  // The descriptors go with the first byte.
  static bool WriteAll(int fd, const std::byte* from, size_t bytes, std::vector<UniqueFd>& fds) {
    while (bytes > 0) {
      pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
      if (::poll(&ready, 1, -1) < 0) return false;
      alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
      iovec io{.iov_base = const_cast<std::byte*>(from), .iov_len = bytes};
      msghdr message{};
      message.msg_iov = &io;
      message.msg_iovlen = 1;
      if (!fds.empty()) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
        cmsghdr* const c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
        for (size_t i = 0; i < fds.size(); ++i) {
          const int passed = fds[i].get();
          std::memcpy(CMSG_DATA(c) + i * sizeof(int), &passed, sizeof(int));
        }
      }
      const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN) return false;
      if (sent < 0) continue;
      fds.clear();
      from += sent;
      bytes -= static_cast<size_t>(sent);
    }
    return true;
  }

  void Pass(int from, int to, bool replies) {
    std::vector<std::byte> frame(wire::kFrameHeaderBytes);
    std::vector<UniqueFd> fds;
    while (ReadAll(from, frame.data(), wire::kFrameHeaderBytes, fds)) {
      wire::FrameHeader header;
      std::array<std::byte, wire::kFrameHeaderBytes> head;
      std::copy_n(frame.begin(), head.size(), head.begin());
      ASSERT_TRUE(wire::DecodeFrameHeader(head, kMaxFrameBytes, &header).ok());
      frame.resize(wire::FrameBytes(header.payload_bytes, header.raw_bytes));
      if (!ReadAll(from, frame.data() + head.size(), frame.size() - head.size(), fds)) return;
      if (header.type == wire::PAGE_READ && !Count(replies)) return;
      if (options_.alter) options_.alter(header, frame);
      if (!WriteAll(to, frame.data(), frame.size(), fds)) return;
      frame.resize(wire::kFrameHeaderBytes);
    }
  }

  // False when the connection is to end.
  bool Count(bool reply) {
    absl::MutexLock lock(&mutex_);
    if (!reply) {
      most_in_flight_ = std::max(most_in_flight_, ++in_flight_);
      return true;
    }
    const auto enough = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return most_in_flight_ >= options_.wanted;
    };
    const auto released = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !holds_; };
    if (answers_ == 0) mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(5));
    mutex_.AwaitWithTimeout(absl::Condition(&released), absl::Seconds(10));
    --in_flight_;
    return ++answers_ <= options_.ends_after;
  }

  uint16_t port_ = 0;
  UniqueFd listener_, client_, daemon_;
  mutable absl::Mutex mutex_;
  const FrameProxyOptions options_;
  bool holds_ ABSL_GUARDED_BY(mutex_) = options_.holds;
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int most_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int answers_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread up_;
};

}  // namespace turnkeep::testing
