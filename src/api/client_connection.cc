#include "api/client_connection.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "api/paths.h"
#include "api/socket_connect.h"
#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

namespace {

// The kernel passes at most 253 descriptors with one message.
constexpr size_t kMaxFdsPerMessage = 253;
constexpr size_t kMaxHeldFds = 4096;
// How long ReadLoop keeps away from a socket on which callers receive for themselves.
constexpr absl::Duration kKeepAway = absl::Milliseconds(1);

uint64_t TimeLimitMicros(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) return 0;
  return static_cast<uint64_t>(
      std::max<int64_t>(1, absl::ToInt64Microseconds(deadline - absl::Now())));
}

absl::Status CheckFrameSize(wire::MessageType type, size_t payload_bytes, size_t raw_bytes) {
  const uint64_t bytes = wire::FrameBytes(payload_bytes, raw_bytes);
  if (bytes <= kMaxFrameBytes) return absl::OkStatus();
  return InvalidArgument("{}: the request has {} bytes, the limit is {}",
                         wire::TypeName(static_cast<uint16_t>(type)), bytes, kMaxFrameBytes);
}

}  // namespace

absl::StatusOr<std::shared_ptr<ClientConnection>> ClientConnection::Open(
    const ClientOptions& options) {
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  UniqueFd fd;
  if (!options.socket_path.empty()) {
    TK_ASSIGN_OR_RETURN(fd, ConnectUnix(options.socket_path, deadline));
  } else {
    TK_ASSIGN_OR_RETURN(const LoopbackAddress address,
                        ParseLoopbackAddress("tcp_address", options.tcp_address));
    TK_ASSIGN_OR_RETURN(fd, ConnectLoopback(address, deadline));
  }
  std::shared_ptr<ClientConnection> connection(new ClientConnection(std::move(fd), options));
  TK_RETURN_IF_ERROR(connection->SayHello(options));
  return connection;
}

ClientConnection::ClientConnection(UniqueFd fd, const ClientOptions& options)
    : fd_(std::move(fd)),
      request_timeout_(options.request_timeout),
      busy_poll_(options.busy_poll) {}

ClientConnection::~ClientConnection() {
  absl::MutexLock lock(&mutex_);
  TK_CHECK(pending_.empty());
}

absl::Status ClientConnection::SayHello(const ClientOptions& options) {
  wire::Hello hello;
  hello.set_min_version(wire::kMinProtocolVersion);
  hello.set_max_version(wire::kProtocolVersion);
  hello.set_client(options.client_name);
  hello.set_token(options.tcp_token);
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  const auto frame = Exchange(wire::HELLO, hello.SerializeAsString(), deadline);
  if (absl::IsDeadlineExceeded(frame.status())) {
    return Unavailable("hello: the daemon does not answer within {}",
                       absl::FormatDuration(options.connect_timeout));
  }
  TK_RETURN_IF_ERROR(frame.status());
  TK_ASSIGN_OR_RETURN(const auto reply, wire::Parse<wire::HelloReply>(frame->payload()));
  info_ = {.version = reply.server_version(),
           .tenant = reply.tenant(),
           .protocol_version = reply.version(),
           .shared_memory = reply.shared_memory(),
           .instance = reply.server_instance()};
  if (info_.protocol_version < wire::kMinProtocolVersion ||
      info_.protocol_version > wire::kProtocolVersion) {
    return FailedPrecondition(
        "hello: the daemon chose protocol version {}, this side speaks {} to {}",
        info_.protocol_version, wire::kMinProtocolVersion, wire::kProtocolVersion);
  }
  return absl::OkStatus();
}

absl::StatusOr<wire::Frame> ClientConnection::Exchange(wire::MessageType type,
                                                       std::string_view payload,
                                                       absl::Time deadline) {
  const wire::FrameHeader header{.type = static_cast<uint16_t>(type),
                                 .request_id = 0,
                                 .time_limit_us = TimeLimitMicros(deadline)};
  TK_RETURN_IF_ERROR(SendFrame(wire::EncodeFrameHead(header, payload, 0), {}, deadline));
  for (;;) {
    TK_ASSIGN_OR_RETURN(std::optional<wire::Frame> frame, reader_.Next());
    if (!frame) {
      TK_RETURN_IF_ERROR(Receive(deadline));
      continue;
    }
    if (frame->header().type == wire::ERROR) {
      TK_ASSIGN_OR_RETURN(const auto error, wire::Parse<wire::Error>(frame->payload()));
      return wire::FromWire(error);
    }
    if (frame->header().type == type && frame->header().reply()) {
      wire::FrameReader::Keep(*frame);
      return std::move(*frame);
    }
    TK_RETURN_IF_ERROR(HandlePush(*frame));
  }
}

absl::Status ClientConnection::Receive(absl::Time deadline) {
  const std::span<std::byte> area = reader_.Writable();
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFdsPerMessage * sizeof(int))];
  absl::Time awake_until = absl::InfinitePast();
  if (deadline != absl::InfinitePast()) awake_until = std::min(deadline, absl::Now() + busy_poll_);
  for (;;) {
    iovec io{.iov_base = area.data(), .iov_len = area.size()};
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t received = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
    if (received < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return Unavailable("connection lost: {}", std::strerror(errno));
      if (absl::Now() < awake_until) {
        ::sched_yield();
      } else {
        TK_RETURN_IF_ERROR(WaitForFd(fd_.get(), POLLIN, deadline));
      }
      continue;
    }
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        received_fds_.emplace_back(fd);
      }
    }
    if (received == 0) return Unavailable("connection lost: the daemon closed it");
    if ((message.msg_flags & MSG_CTRUNC) != 0 || received_fds_.size() > kMaxHeldFds) {
      return ResourceExhausted(
          "connection: descriptors of segments were lost; is the limit of "
          "open files (ulimit -n) too low?");
    }
    reader_.Received(static_cast<size_t>(received));
    return absl::OkStatus();
  }
}

absl::Status ClientConnection::ReceiveSome(absl::Time deadline) {
  for (bool received = false;;) {
    TK_ASSIGN_OR_RETURN(std::optional<wire::Frame> frame, reader_.Next());
    if (frame) {
      TK_RETURN_IF_ERROR(Handle(*frame));
      received = true;
    } else if (received) {
      return absl::OkStatus();
    } else {
      TK_RETURN_IF_ERROR(Receive(deadline));
      received = true;
    }
  }
}

void ClientConnection::ReadLoop() {
  // What came with the reply to hello is handled before anything is waited for.
  absl::Time deadline = absl::InfinitePast();
  while (!lost()) {
    {
      absl::MutexLock lock(&mutex_);
      if (receiving_ || waiting_ > 0) {
        const auto is_lost = [this] { return lost_.load(std::memory_order_relaxed); };
        mutex_.AwaitWithTimeout(absl::Condition(&is_lost), kKeepAway);
        continue;
      }
      receiving_ = true;
    }
    const absl::Status status = ReceiveSome(deadline);
    {
      absl::MutexLock lock(&mutex_);
      receiving_ = false;
    }
    if (!status.ok() && !absl::IsDeadlineExceeded(status)) return Lose(status);
    // Waiting does not take the right: a caller may want it.
    if (const auto ready = WaitForFd(fd_.get(), POLLIN, absl::InfiniteFuture()); !ready.ok())
      return Lose(ready);
  }
}

template <typename Done>
bool ClientConnection::WaitUntil(const Done& done, absl::Time deadline) {
  const auto turn = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return done() || (!receiving_ && !lost_.load(std::memory_order_relaxed));
  };
  ++waiting_;
  bool late = false;
  while (!done() && !late) {
    late = !mutex_.AwaitWithDeadline(absl::Condition(&turn), deadline);
    if (late || done()) break;
    receiving_ = true;
    mutex_.Unlock();
    const absl::Status status = ReceiveSome(deadline);
    late = absl::IsDeadlineExceeded(status);
    if (!status.ok() && !late) Shut(MessageOf(status));
    mutex_.Lock();
    receiving_ = false;
  }
  --waiting_;
  return done();
}

absl::Status ClientConnection::Handle(wire::Frame& frame) {
  const wire::FrameHeader& header = frame.header();
  if (header.type == wire::ERROR && header.request_id == 0) {
    TK_ASSIGN_OR_RETURN(const auto error, wire::Parse<wire::Error>(frame.payload()));
    return wire::FromWire(error);
  }
  if (header.type != wire::ERROR && !header.reply()) return HandlePush(frame);
  absl::StatusOr<wire::Frame> result = absl::UnknownError("");
  if (header.type == wire::ERROR) {
    TK_ASSIGN_OR_RETURN(const auto error, wire::Parse<wire::Error>(frame.payload()));
    result = wire::FromWire(error);
  } else {
    wire::FrameReader::Keep(frame);
    result = std::move(frame);
  }
  absl::MutexLock lock(&mutex_);
  const auto it = pending_.find(header.request_id);
  if (it == pending_.end()) return absl::OkStatus();  // its caller has given up
  PendingCall* call = it->second;
  pending_.erase(it);
  call->result = std::move(result);
  call->done = true;
  return absl::OkStatus();
}

absl::Status ClientConnection::HandlePush(const wire::Frame& frame) {
  switch (frame.header().type) {
    case wire::SEGMENT_GRANT:
      return HandleGrants(frame);
    case wire::SEGMENT_REVOKE:
      return HandleRevoke(frame);
    case wire::PROGRESS: {
      TK_ASSIGN_OR_RETURN(const auto progress, wire::Parse<wire::Progress>(frame.payload()));
      // Under the mutex, so that waiting followers look again.
      absl::MutexLock lock(&mutex_);
      const auto it = restores_.find(progress.ticket());
      if (it != restores_.end()) it->second->Update(progress);
      return absl::OkStatus();
    }
    case wire::VERIFY_PROGRESS: {
      TK_ASSIGN_OR_RETURN(auto progress, wire::Parse<wire::VerifyProgress>(frame.payload()));
      absl::MutexLock lock(&mutex_);
      const auto it = pending_.find(frame.header().request_id);
      if (it == pending_.end()) return absl::OkStatus();
      it->second->progress = std::move(progress);
      return absl::OkStatus();
    }
    default:
      return Internal("connection: the daemon sent {} unasked",
                      wire::TypeName(frame.header().type));
  }
}

absl::Status ClientConnection::HandleGrants(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::SegmentGrants>(frame.payload()));
  if (static_cast<size_t>(message.grants_size()) > received_fds_.size()) {
    return Internal("connection: {} segments granted with {} descriptors", message.grants_size(),
                    received_fds_.size());
  }
  for (const wire::SegmentGrant& grant : message.grants()) {
    UniqueFd fd = std::move(received_fds_.front());
    received_fds_.erase(received_fds_.begin());
    TK_ASSIGN_OR_RETURN(SharedMemory memory,
                        SharedMemory::Map(fd.Release(), grant.segment_bytes()));
    memory.CloseDescriptor();
    // A child of the engine must not write into slots that are not the engine's any more.
    ::madvise(memory.memory().data(), memory.bytes(), MADV_DONTFORK);
    auto shared = std::make_shared<const SharedMemory>(std::move(memory));
    absl::MutexLock lock(&mutex_);
    segments_[grant.segment()] = std::move(shared);
  }
  return absl::OkStatus();
}

absl::Status ClientConnection::HandleRevoke(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::SegmentRevoke>(frame.payload()));
  for (const uint32_t segment : message.segments()) {
    std::shared_ptr<const SharedMemory> dropped;  // unmapped outside the lock
    absl::MutexLock lock(&mutex_);
    const auto it = segments_.find(segment);
    if (it == segments_.end()) continue;
    dropped = std::move(it->second);
    segments_.erase(it);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const SharedMemory>> ClientConnection::Segment(uint32_t segment) {
  absl::MutexLock lock(&mutex_);
  const auto it = segments_.find(segment);
  if (it != segments_.end()) return it->second;
  if (lost_.load(std::memory_order_relaxed)) return lost_status_;
  return Internal("segment {}: used but not granted", segment);
}

void ClientConnection::Lose(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (lost_.load(std::memory_order_relaxed)) return;
  lost_status_ =
      absl::IsUnavailable(why) ? why : Unavailable("connection lost: {}", MessageOf(why));
  lost_.store(true, std::memory_order_release);
  for (auto& [id, call] : pending_) {
    call->result = lost_status_;
    call->done = true;
  }
  pending_.clear();
  for (auto& [ticket, state] : restores_) state->Lose(MessageOf(lost_status_));
  restores_.clear();
  segments_.clear();
}

void ClientConnection::Shut(const std::string& reason) {
  Lose(Unavailable("{}", reason));
  // Wakes ReadLoop. The daemon does not see it: it must keep the slots of open tickets.
  ::shutdown(fd_.get(), SHUT_RD);
}

absl::Status ClientConnection::LostStatus() const {
  absl::MutexLock lock(&mutex_);
  return lost_status_;
}

absl::StatusOr<wire::Frame> ClientConnection::Roundtrip(wire::MessageType type,
                                                        std::string_view payload,
                                                        std::span<const std::byte> raw,
                                                        absl::Time deadline,
                                                        const VerifyProgress& progress) {
  TK_ASSIGN_OR_RETURN(const auto request, Begin(type, payload, raw, deadline));
  return Await(*request, deadline, progress);
}

absl::StatusOr<std::unique_ptr<ClientConnection::Request>> ClientConnection::Begin(
    wire::MessageType type, std::string_view payload, std::span<const std::byte> raw,
    absl::Time deadline) {
  TK_RETURN_IF_ERROR(CheckFrameSize(type, payload.size(), raw.size()));
  wire::FrameHeader header{.type = static_cast<uint16_t>(type),
                           .time_limit_us = TimeLimitMicros(deadline)};
  auto request = std::make_unique<Request>(*this, type);
  {
    absl::MutexLock lock(&mutex_);
    if (lost_.load(std::memory_order_relaxed)) return lost_status_;
    header.request_id = request->id_ = next_request_++;
    pending_[header.request_id] = &request->call_;
  }
  TK_RETURN_IF_ERROR(SendFrame(wire::EncodeFrameHead(header, payload, raw.size()), raw, deadline));
  return request;
}

absl::StatusOr<wire::Frame> ClientConnection::Await(Request& request, absl::Time deadline,
                                                    const VerifyProgress& progress) {
  PendingCall& call = request.call_;
  absl::MutexLock lock(&mutex_);
  const auto changed = [&call] { return call.done || call.progress.has_value(); };
  while (!call.done) {
    const bool late = !WaitUntil(changed, deadline);
    if (call.progress && !progress) call.progress.reset();
    if (call.progress) {
      const wire::VerifyProgress news = *std::exchange(call.progress, std::nullopt);
      mutex_.Unlock();
      progress(news.done_bytes(), news.total_bytes());
      mutex_.Lock();
    }
    if (late && !call.done) {
      pending_.erase(request.id_);
      return DeadlineExceeded("{}: no answer from the daemon in time",
                              wire::TypeName(request.type_));
    }
  }
  return std::move(call.result);
}

size_t ClientConnection::unanswered() const {
  absl::MutexLock lock(&mutex_);
  return pending_.size();
}

void ClientConnection::Forget(uint64_t request_id) {
  absl::MutexLock lock(&mutex_);
  pending_.erase(request_id);
}

absl::Status ClientConnection::Send(wire::MessageType type, std::string_view payload,
                                    std::span<const std::byte> raw, absl::Time deadline) {
  if (lost()) return LostStatus();
  TK_RETURN_IF_ERROR(CheckFrameSize(type, payload.size(), raw.size()));
  const wire::FrameHeader header{.type = static_cast<uint16_t>(type)};
  return SendFrame(wire::EncodeFrameHead(header, payload, raw.size()), raw, deadline);
}

absl::Status ClientConnection::SendFrame(const std::string& head, std::span<const std::byte> raw,
                                         absl::Time deadline) {
  {
    absl::MutexLock lock(&mutex_);
    const auto free = [this] { return !sending_; };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&free), deadline)) {
      return DeadlineExceeded("send to the daemon: others were sending until the deadline");
    }
    if (lost_.load(std::memory_order_relaxed)) return lost_status_;
    sending_ = true;
  }
  const absl::Status status = WriteAll(head, raw, deadline);
  absl::MutexLock lock(&mutex_);
  sending_ = false;
  return status;
}

absl::Status ClientConnection::WriteAll(const std::string& head, std::span<const std::byte> raw,
                                        absl::Time deadline) {
  const std::string_view padding = wire::RawPadding(raw.size());
  iovec parts[3] = {{const_cast<char*>(head.data()), head.size()},
                    {const_cast<std::byte*>(raw.data()), raw.size()},
                    {const_cast<char*>(padding.data()), padding.size()}};
  size_t first = 0;
  bool begun = false;
  while (first < 3) {
    msghdr message{};
    message.msg_iov = parts + first;
    message.msg_iovlen = 3 - first;
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      const absl::Status ready = WaitForFd(fd_.get(), POLLOUT, deadline);
      if (ready.ok()) continue;
      // Half a frame is out: the stream cannot be used for anything else.
      if (begun) Shut("connection given up: half a frame sent when its deadline passed");
      return ready;
    }
    if (sent < 0) {
      const absl::Status status = Unavailable("connection lost: {}", std::strerror(errno));
      Shut(MessageOf(status));
      return status;
    }
    begun = true;
    size_t left = static_cast<size_t>(sent);
    while (first < 3 && left >= parts[first].iov_len) left -= parts[first++].iov_len;
    if (first < 3) {
      parts[first].iov_base = static_cast<char*>(parts[first].iov_base) + left;
      parts[first].iov_len -= left;
    }
  }
  return absl::OkStatus();
}

void ClientConnection::AddRestore(uint64_t ticket, std::shared_ptr<RestoreState> state) {
  absl::MutexLock lock(&mutex_);
  if (lost_.load(std::memory_order_relaxed)) return;  // the begin fails by itself
  restores_[ticket] = std::move(state);
}

bool ClientConnection::WaitForLayer(const RestoreState& state, uint32_t layer,
                                    absl::Time deadline) {
  if (state.decided(layer)) return true;
  absl::MutexLock lock(&mutex_);
  return WaitUntil([&state, layer] { return state.decided(layer); }, deadline);
}

void ClientConnection::RemoveRestore(uint64_t ticket) {
  absl::MutexLock lock(&mutex_);
  restores_.erase(ticket);
}

void ClientConnection::Release(uint64_t ticket) {
  if (lost()) return;
  wire::TicketRef ref;
  ref.set_ticket(ticket);
  // When this cannot be sent the daemon must learn of it by the loss of the connection.
  if (!Send(wire::RELEASE, ref.SerializeAsString(), {}, absl::Now() + request_timeout_).ok()) {
    Shut("connection given up: a ticket could not be released");
  }
}

}  // namespace turnkeep
