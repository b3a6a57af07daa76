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
        if (type == wire::PROGRESS) ++progress_frames_;
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

  // A restore of all that `session` shows. False when no plan comes back.
  bool BeginRestore(uint64_t ticket, const std::string& session, const Fingerprint& layout) {
    wire::BeginRestoreRequest begin;
    begin.set_ticket(ticket);
    begin.set_session(session);
    begin.set_layout(wire::IdBytes(layout));
    begin.set_max_tokens(UINT64_MAX);
    begin.set_deadline_us(60'000'000);
    if (!Request(wire::BEGIN_RESTORE, ticket, begin)) return false;
    const auto plan = Receive();
    return plan.has_value() && plan->header().type == wire::BEGIN_RESTORE;
  }
  // OK when the page came back.
  absl::Status ReadPage(uint64_t id, const wire::PageRead& read) {
    if (!Request(wire::PAGE_READ, id, read)) return absl::UnknownError("not sent");
    const auto frame = Receive();
    if (!frame) return absl::UnknownError("the connection ended");
    if (frame->header().type != wire::PAGE_READ)
      return wire::FromWire(*wire::Parse<wire::Error>(frame->payload()));
    EXPECT_EQ(frame->raw().size(), read.length());
    return absl::OkStatus();
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
  // Of the frames that Receive passed over.
  int progress_frames() const { return progress_frames_; }

 private:
  static absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

  UniqueFd fd_;
  wire::FrameReader reader_;
  int progress_frames_ = 0;
};

}  // namespace turnkeep::testing
