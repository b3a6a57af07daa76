// The sending half of ServerConnection, and Responder.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>

#include <spdlog/spdlog.h>

#include "api/server_connection.h"
#include "api/server_tickets.h"
#include "api/wire_messages.h"
#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// The kernel passes at most 253 descriptors at once.
constexpr size_t kGrantsPerFrame = 128;

// Pages that are copied for a client beyond what it has taken: what a loopback takes in a
// millisecond or two, so that it never waits for the next.
constexpr uint64_t kPagesAheadBytes = 4 * kMiB;

std::chrono::steady_clock::time_point DeadlineOf(const wire::FrameHeader& header) {
  constexpr uint64_t kLongest = 365ull * 86'400 * 1'000'000;
  const auto now = Responder::Clock::now();
  if (header.time_limit_us == 0 || header.time_limit_us > kLongest) {
    return Responder::Clock::time_point::max();
  }
  return now + std::chrono::microseconds(header.time_limit_us);
}

}  // namespace

// ---- Responder -------------------------------------------------------------------

Responder::Responder(std::weak_ptr<ServerConnection> connection, const wire::FrameHeader& header)
    : connection_(std::move(connection)), header_(header), deadline_(DeadlineOf(header)) {}

std::shared_ptr<ServerConnection> Responder::Finish(absl::StatusCode code) {
  if (std::exchange(answered_, true)) return nullptr;
  auto connection = connection_.lock();
  if (connection) {
    connection->CallFinished(header_, absl::FromChrono(Clock::now() - start_), code);
  }
  return connection;
}

void Responder::Reply(std::string_view payload, std::span<const std::byte> raw,
                      std::shared_ptr<const void> raw_owner) {
  const auto connection = Finish(absl::StatusCode::kOk);
  if (!connection) return;
  connection->Send(
      {.type = header_.type, .request_id = header_.request_id, .flags = wire::kFlagReply}, payload,
      raw, std::move(raw_owner));
}

void Responder::Error(const absl::Status& status) {
  const auto connection = Finish(status.code());
  if (!connection) return;
  wire::Error error;
  wire::ToWire(status, &error);
  connection->Send({.type = wire::ERROR, .request_id = header_.request_id},
                   error.SerializeAsString());
}

absl::Status Responder::Late() const {
  return DeadlineExceeded("{}: not done in time", wire::TypeName(header_.type));
}

void Responder::Push(wire::MessageType type, std::string_view payload) {
  if (answered_) return;
  if (const auto connection = connection_.lock()) {
    connection->Send({.type = static_cast<uint16_t>(type), .request_id = header_.request_id},
                     payload);
  }
}

void Responder::ArmDeadline(std::shared_ptr<Responder> self) {
  if (answered_ || deadline_ == Clock::time_point::max()) return;
  if (const auto connection = connection_.lock()) connection->AddDeadline(std::move(self));
}

// ---- sending ---------------------------------------------------------------------

void ServerConnection::Send(wire::FrameHeader header, std::string_view payload,
                            std::span<const std::byte> raw, std::shared_ptr<const void> raw_owner,
                            std::vector<UniqueFd> fds) {
  if (sending_stopped_ || state_ == State::kKicked || state_ == State::kClosed) return;
  if (wire::FrameBytes(payload.size(), raw.size()) > context_.options().max_frame_bytes) {
    // Only a list can be so long; the client asked for too much at once.
    wire::Error error;
    wire::ToWire(ResourceExhausted("{}: the answer has {} bytes, the limit is {}",
                                   wire::TypeName(header.type), payload.size() + raw.size(),
                                   context_.options().max_frame_bytes),
                 &error);
    return Send({.type = wire::ERROR, .request_id = header.request_id}, error.SerializeAsString());
  }
  outbound_.push_back({.head = wire::EncodeFrameHead(header, payload, raw.size()),
                       .raw = raw,
                       .raw_owner = std::move(raw_owner),
                       .fds = std::move(fds)});
  const uint64_t bytes = wire::FrameBytes(payload.size(), raw.size());
  outbound_bytes_ += bytes;
  context_.totals().outbound_bytes += bytes;
  if (outbound_.size() == 1) Flush();
  if (outbound_bytes_ > context_.options().max_outbound_bytes) {
    Kick("slow_reader", ResourceExhausted("{} bytes of answers are not read, the limit is {}",
                                          outbound_bytes_, context_.options().max_outbound_bytes));
  }
}

bool ServerConnection::HasRoomForPages() const {
  return outbound_bytes_ <= std::min(kPagesAheadBytes, context_.options().max_outbound_bytes / 2);
}

void ServerConnection::Flush() {
  while (!outbound_.empty() && !waiting_writable_) {
    OutboundFrame& frame = outbound_.front();
    if (!SendSome(frame, &sent_of_first_)) break;
    const uint64_t bytes =
        frame.head.size() + frame.raw.size() + wire::RawPadding(frame.raw.size()).size();
    outbound_bytes_ -= bytes;
    context_.totals().outbound_bytes -= bytes;
    sent_of_first_ = 0;
    outbound_.pop_front();
  }
  if (state_ == State::kKicked && outbound_.empty()) return StopSending();
  if (outbound_.empty() || waiting_writable_ || sending_stopped_) return;
  waiting_writable_ = true;
  socket_.async_wait(boost::asio::socket_base::wait_write,
                     [self = shared_from_this()](const boost::system::error_code& e) {
                       self->waiting_writable_ = false;
                       if (e || self->state_ == State::kClosed) return;
                       self->Flush();
                       if (self->state_ == State::kOpen) self->tickets_->AnswerWaitingPages();
                     });
}

bool ServerConnection::SendSome(OutboundFrame& frame, size_t* sent) {
  const std::string_view padding = wire::RawPadding(frame.raw.size());
  const std::string_view pieces[3] = {
      frame.head, {reinterpret_cast<const char*>(frame.raw.data()), frame.raw.size()}, padding};
  const size_t total = frame.head.size() + frame.raw.size() + padding.size();
  while (*sent < total) {
    iovec io[3];
    size_t count = 0;
    size_t skip = *sent;
    for (const std::string_view piece : pieces) {
      const size_t skipped = std::min(skip, piece.size());
      skip -= skipped;
      if (skipped == piece.size()) continue;
      io[count++] = {const_cast<char*>(piece.data()) + skipped, piece.size() - skipped};
    }
    msghdr message{};
    message.msg_iov = io;
    message.msg_iovlen = count;
    alignas(cmsghdr) char control[CMSG_SPACE(kGrantsPerFrame * sizeof(int))];
    if (*sent == 0 && !frame.fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(frame.fds.size() * sizeof(int));
      std::memset(control, 0, message.msg_controllen);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(frame.fds.size() * sizeof(int));
      for (size_t i = 0; i < frame.fds.size(); ++i) {
        const int fd = frame.fds[i].get();
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
      }
    }
    const ssize_t n = ::sendmsg(socket_.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return false;
    if (n < 0) {
      // The hang-up itself is seen, and handled, by the receiving side.
      spdlog::debug("{}: send: {}", Name(), std::strerror(errno));
      StopSending();
      return false;
    }
    *sent += static_cast<size_t>(n);
    frame.fds.clear();
  }
  return true;
}

// ---- segments --------------------------------------------------------------------

absl::Status ServerConnection::GrantSegments(const std::set<uint32_t>& segments) {
  context_.RevokeReleasedSegments();
  wire::SegmentGrants message;
  std::vector<UniqueFd> fds;
  const auto send = [&] {
    if (fds.empty()) return;
    Send({.type = wire::SEGMENT_GRANT}, message.SerializeAsString(), {}, nullptr, std::move(fds));
    message.Clear();
    fds.clear();
  };
  for (const uint32_t segment : segments) {
    if (granted_.contains(segment)) continue;
    auto fd = DuplicateSegment(segment, message);
    if (!fd.ok()) {
      send();
      return fd.status();
    }
    fds.push_back(*std::move(fd));
    if (fds.size() == kGrantsPerFrame) send();
  }
  send();
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> ServerConnection::DuplicateSegment(uint32_t segment,
                                                            wire::SegmentGrants& message) {
  TK_ASSIGN_OR_RETURN(const SegmentGrant grant, context_.store().Segment(segment));
  if (grant.tenant != tenant_.number) {
    return Internal("segment {}: belongs to tenant {}, not {}", segment, grant.tenant,
                    tenant_.number);
  }
  // A copy: the store may close its own before the frame is out.
  UniqueFd fd(::fcntl(grant.fd, F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, fmt::format("grant segment {}", segment));
  wire::SegmentGrant* entry = message.add_grants();
  entry->set_segment(segment);
  entry->set_segment_bytes(grant.segment_bytes);
  entry->set_slot_bytes(grant.slot_bytes);
  granted_[segment] = grant.slot_bytes;
  ++context_.totals().granted_segments;
  return fd;
}

absl::StatusOr<uint64_t> ServerConnection::SlotBytes(uint32_t segment) const {
  const auto it = granted_.find(segment);
  if (it == granted_.end()) return Internal("segment {}: used but not granted", segment);
  return it->second;
}

void ServerConnection::RevokeSegments(const std::vector<uint32_t>& segments) {
  wire::SegmentRevoke message;
  for (const uint32_t segment : segments) {
    if (granted_.erase(segment) == 0) continue;
    --context_.totals().granted_segments;
    message.add_segments(segment);
  }
  if (message.segments_size() > 0) {
    Send({.type = wire::SEGMENT_REVOKE}, message.SerializeAsString());
  }
}

}  // namespace turnkeep
