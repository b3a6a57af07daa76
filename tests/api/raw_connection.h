// A connection to the daemon that sends whatever bytes a test likes.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "api/frame.h"
#include "api/socket_connect.h"
#include "api/wire_messages.h"
#include "testing/eventually.h"

namespace turnkeep::testing {

class RawConnection {
 public:
  explicit RawConnection(const std::string& socket_path) {
    auto fd = ConnectUnix(socket_path, absl::Now() + absl::Seconds(5));
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (fd.ok()) fd_ = *std::move(fd);
  }

  // False when the daemon does not take it all within 10 s.
  bool SendBytes(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent > 0) {
        bytes.remove_prefix(static_cast<size_t>(sent));
      } else if (errno != EAGAIN || !WaitForFd(fd_.get(), POLLOUT, Soon()).ok()) {
        return false;
      }
    }
    return true;
  }

  bool SendFrame(wire::FrameHeader header, const std::string& payload, std::string_view raw = {}) {
    return SendBytes(wire::EncodeFrameHead(header, payload, raw.size())) && SendBytes(raw) &&
           SendBytes(wire::RawPadding(raw.size()));
  }
  template <typename Message>
  bool Request(wire::MessageType type, uint64_t id, const Message& message,
               std::string_view raw = {}) {
    return SendFrame({.type = static_cast<uint16_t>(type), .request_id = id},
                     message.SerializeAsString(), raw);
  }

  // The next frame that is not pushed; nothing at end of file, or when none comes within 10 s.
  std::optional<wire::Frame> Receive() {
    for (;;) {
      auto frame = reader_.Next();
      EXPECT_TRUE(frame.ok()) << frame.status();
      if (!frame.ok()) return std::nullopt;
      if (frame->has_value()) {
        const uint16_t type = (*frame)->header().type;
        if (type == wire::SEGMENT_GRANT || type == wire::PROGRESS) continue;
        wire::FrameReader::Keep(**frame);
        return std::move(**frame);
      }
      const auto area = reader_.Writable();
      const ssize_t received = ::recv(fd_.get(), area.data(), area.size(), 0);
      if (received == 0) return std::nullopt;
      if (received > 0) {
        reader_.Received(static_cast<size_t>(received));
      } else if (errno != EAGAIN || !WaitForFd(fd_.get(), POLLIN, Soon()).ok()) {
        return std::nullopt;
      }
    }
  }

  // The error that the next frame must be; OK when it is something else.
  absl::Status ReceiveError() {
    const auto frame = Receive();
    if (!frame || frame->header().type != wire::ERROR) return absl::OkStatus();
    const auto error = wire::Parse<wire::Error>(frame->payload());
    EXPECT_TRUE(error.ok());
    return wire::FromWire(*error);
  }

  // Whether the daemon ends the connection within 10 s.
  bool SeesEnd() {
    std::byte bytes[4096];
    for (;;) {
      const ssize_t received = ::recv(fd_.get(), bytes, sizeof(bytes), 0);
      if (received == 0) return true;
      if (received < 0 && errno == ECONNRESET) return true;
      if (received < 0 && !WaitForFd(fd_.get(), POLLIN, Soon()).ok()) return false;
    }
  }

  bool Hello() {
    wire::Hello hello;
    hello.set_min_version(1);
    hello.set_max_version(wire::kProtocolVersion);
    hello.set_client("raw");
    if (!Request(wire::HELLO, 0, hello)) return false;
    const auto reply = Receive();
    return reply && reply->header().type == wire::HELLO;
  }

  void Close() { fd_.Reset(); }
  int fd() const { return fd_.get(); }

 private:
  static absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

  UniqueFd fd_;
  wire::FrameReader reader_;
};

}  // namespace turnkeep::testing
