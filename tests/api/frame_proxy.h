// A proxy between one TCP client and the daemon that counts, holds and changes frames.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
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
  int wanted = 1;
  int ends_after = 1 << 30;
  bool holds = false;
  std::function<void(const wire::FrameHeader&, std::vector<std::byte>& frame)> alter;
};
class FrameProxy {
 public:
  FrameProxy(uint16_t daemon_port, FrameProxyOptions options) : options_(std::move(options)) {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    socklen_t bytes = sizeof(address);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &bytes), 0);
    port_ = ntohs(address.sin_port);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    up_ = std::thread([this, daemon_port] { Run(daemon_port); });
  }
  // After the client has gone.
  ~FrameProxy() { up_.join(); }

  uint16_t port() const { return port_; }
  void Release() {
    absl::MutexLock lock(&mutex_);
    options_.holds = false;
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
  void Run(uint16_t daemon_port) {
    client_ = UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int on = 1;
    EXPECT_EQ(::setsockopt(client_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), 0);
    auto daemon = ConnectLoopback({.host = "127.0.0.1", .port = daemon_port},
                                  absl::Now() + absl::Seconds(10));
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

  static bool ReadAll(int fd, std::byte* to, size_t bytes) {
    while (bytes > 0) {
      pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, -1) < 0) return false;
      const ssize_t got = ::recv(fd, to, bytes, 0);
      if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
      if (got < 0) continue;
      to += got;
      bytes -= static_cast<size_t>(got);
    }
    return true;
  }
  static bool WriteAll(int fd, const std::byte* from, size_t bytes) {
    while (bytes > 0) {
      pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
      if (::poll(&ready, 1, -1) < 0) return false;
      const ssize_t sent = ::send(fd, from, bytes, MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN) return false;
      if (sent < 0) continue;
      from += sent;
      bytes -= static_cast<size_t>(sent);
    }
    return true;
  }

  void Pass(int from, int to, bool replies) {
    std::vector<std::byte> frame(wire::kFrameHeaderBytes);
    while (ReadAll(from, frame.data(), wire::kFrameHeaderBytes)) {
      wire::FrameHeader header;
      std::array<std::byte, wire::kFrameHeaderBytes> head;
      std::copy_n(frame.begin(), head.size(), head.begin());
      ASSERT_TRUE(wire::DecodeFrameHeader(head, kMaxFrameBytes, &header).ok());
      frame.resize(wire::FrameBytes(header.payload_bytes, header.raw_bytes));
      if (!ReadAll(from, frame.data() + head.size(), frame.size() - head.size())) return;
      if (header.type == wire::PAGE_READ && !Count(replies)) return;
      if (options_.alter) options_.alter(header, frame);
      if (!WriteAll(to, frame.data(), frame.size())) return;
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
    const auto released = [this]()
                              ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !options_.holds; };
    if (answers_ == 0) mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(5));
    mutex_.AwaitWithTimeout(absl::Condition(&released), absl::Seconds(10));
    --in_flight_;
    return ++answers_ <= options_.ends_after;
  }

  uint16_t port_ = 0;
  UniqueFd listener_, client_, daemon_;
  mutable absl::Mutex mutex_;
  FrameProxyOptions options_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int most_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int answers_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread up_;
};

}  // namespace turnkeep::testing
