#include "api/server_connection.h"

#include <sys/socket.h>
#include <sys/syscall.h>

#include <spdlog/spdlog.h>

#include "api/server.h"
#include "api/server_calls.h"
#include "api/server_tickets.h"
#include "api/wire_messages.h"
#include "api/wire_plan.h"
#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

namespace {

namespace asio = boost::asio;

// Frames handled before other connections get their turn.
constexpr int kFramesPerTurn = 64;
// A kicked connection without tickets is kept this long, so that it can read why.
constexpr std::chrono::seconds kFarewell{1};

std::chrono::steady_clock::duration ToChrono(absl::Duration duration) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::nanoseconds(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace

// ---- life ------------------------------------------------------------------------

ServerConnection::ServerConnection(ServerContext& context, Socket socket, bool unix_socket)
    : context_(context),
      socket_(std::move(socket)),
      unix_socket_(unix_socket),
      number_(context.NextConnectionNumber()),
      reader_(context.options().max_frame_bytes),
      tickets_(std::make_unique<ConnectionTickets>(*this)),
      deadline_timer_(context.io()),
      life_timer_(context.io()) {}

ServerConnection::~ServerConnection() = default;

void ServerConnection::Start() {
  context_.metrics().AddConnection();
  boost::system::error_code error;
  socket_.native_non_blocking(true, error);
  if (unix_socket_) IdentifyPeer();
  life_timer_.expires_after(ToChrono(context_.options().hello_timeout));
  life_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& e) {
    if (!e && (self->state_ == State::kHello || self->state_ == State::kGreeting)) {
      self->context_.metrics().AddDisconnect("hello_timeout");
      self->Close("no hello in time");
    }
  });
  WaitReadable();
}

void ServerConnection::IdentifyPeer() {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket_.native_handle(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return Close("no peer credentials");
  }
  peer_uid_ = credentials.uid;
  peer_pid_ = credentials.pid;
  if (peer_pid_ > 0) WatchProcess(peer_pid_);
}

void ServerConnection::WatchProcess(int pid) {
  // The hang-up alone is not enough: a child of the client may hold the socket open.
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return;  // ended already (the hang-up follows), or an old kernel
  process_.emplace(context_.io(), fd);
  process_->async_wait(asio::posix::descriptor_base::wait_read,
                       [self = shared_from_this()](const boost::system::error_code& e) {
                         if (!e) self->Close("its process ended");
                       });
}

std::string ServerConnection::Name() const {
  if (!unix_socket_) return fmt::format("connection {} ({}, tcp)", number_, client_name_);
  return fmt::format("connection {} ({}, uid {}, pid {})", number_, client_name_, peer_uid_,
                     peer_pid_);
}

void ServerConnection::Kick(const std::string& reason, const absl::Status& why) {
  if (kicked_ || state_ == State::kClosed) return;
  kicked_ = true;  // first: sending the error below may end here again
  spdlog::warn("{}: disconnected, {}: {}", Name(), reason, MessageOf(why));
  context_.metrics().AddDisconnect(reason);
  wire::Error error;
  wire::ToWire(why, &error);
  Send({.type = wire::ERROR}, error.SerializeAsString());
  state_ = State::kKicked;
  if (outbound_.empty() || reason == "slow_reader") StopSending();
  if (tickets_->count() > 0) return;
  life_timer_.expires_after(kFarewell);
  life_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& e) {
    if (!e) self->Close("kicked");
  });
}

void ServerConnection::StopSending() {
  if (sending_stopped_) return;
  sending_stopped_ = true;
  context_.totals().outbound_bytes -= outbound_bytes_;
  outbound_bytes_ = 0;
  outbound_.clear();
  ::shutdown(socket_.native_handle(), SHUT_WR);
}

void ServerConnection::Close(const std::string& why) {
  if (state_ == State::kClosed) return;
  const auto self = shared_from_this();
  spdlog::debug("{}: closed, {}; {} tickets released", Name(), why, tickets_->count());
  state_ = State::kClosed;
  wanted_.reset();
  tickets_->Clear();
  gpu_.reset();
  sending_stopped_ = true;
  context_.totals().outbound_bytes -= outbound_bytes_;
  context_.totals().running_calls -= running_calls_;
  context_.totals().granted_segments -= granted_.size();
  outbound_bytes_ = 0;
  running_calls_ = 0;
  outbound_.clear();
  granted_.clear();
  deadlines_.clear();
  deadline_timer_.cancel();
  life_timer_.cancel();
  boost::system::error_code error;
  if (process_) process_->close(error);
  socket_.close(error);
  context_.Remove(this);
}

// ---- receiving -------------------------------------------------------------------

void ServerConnection::WaitReadable() {
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](const boost::system::error_code& e) {
                       if (!e) self->OnReadable();
                     });
}

void ServerConnection::OnReadable() {
  while (state_ != State::kClosed) {
    if (!HandleFrames()) break;  // others first; the rest waits in the reader
    if (state_ == State::kClosed || !ReceiveOnce()) break;
  }
  if (state_ != State::kClosed) WaitReadable();
}

bool ServerConnection::ReceiveOnce() {
  std::byte discarded[4096];
  const bool listening = state_ != State::kKicked;
  const std::span<std::byte> area = listening ? reader_.Writable() : std::span(discarded);
  const ssize_t received = ::recv(socket_.native_handle(), area.data(), area.size(), MSG_DONTWAIT);
  if (received > 0) {
    if (!listening) return true;
    reader_.Received(static_cast<size_t>(received));
    if (static_cast<size_t>(received) == area.size()) return true;
    HandleFrames();
    return false;  // drained; what comes now wakes us again
  }
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (received == 0 && listening && !reader_.idle()) {
    spdlog::debug("{}: hung up inside a frame", Name());
  }
  Close(received == 0 ? "it hung up" : fmt::format("receive: {}", std::strerror(errno)));
  return false;
}

bool ServerConnection::HandleFrames() {
  for (int i = 0; state_ != State::kKicked && state_ != State::kClosed; ++i) {
    if (i == kFramesPerTurn) {
      // Frames already received raise no event: come back by ourselves.
      asio::post(context_.io(), [self = shared_from_this()] { self->HandleFrames(); });
      return false;
    }
    auto frame = reader_.Next();
    if (!frame.ok()) {
      const bool version = absl::IsFailedPrecondition(frame.status());
      Kick(version ? "version" : "bad_frame", frame.status());
      return true;
    }
    if (!frame->has_value()) return true;
    HandleFrame(**frame);
  }
  return true;
}

void ServerConnection::HandleFrame(wire::Frame& frame) {
  const wire::FrameHeader& header = frame.header();
  if (header.flags != 0) {
    return Kick("bad_frame", InvalidArgument("frame {}: flags {:#x} in a request",
                                             wire::TypeName(header.type), header.flags));
  }
  if (state_ == State::kHello && header.type == wire::HELLO) return HandleHello(frame);
  if (state_ != State::kOpen || header.type == wire::HELLO) {
    return Kick("bad_order", FailedPrecondition(
                                 "frame {}: {}", wire::TypeName(header.type),
                                 state_ == State::kOpen ? "after the hello" : "before the hello"));
  }
  if (ConnectionTickets::Handles(header.type)) return tickets_->Handle(frame);
  if (header.type == wire::GPU_RESIDENCY) {
    // There is no reply that could carry the error.
    const absl::Status taken = TakeResidency(frame);
    if (!taken.ok()) Kick("bad_frame", taken);
    return;
  }
  if (!IsStoreCall(header.type)) {
    return Kick("bad_frame",
                InvalidArgument("frame {}: not a request", wire::TypeName(header.type)));
  }
  RunCall(frame);
}

absl::Status ServerConnection::TakeResidency(const wire::Frame& frame) {
  TK_ASSIGN_OR_RETURN(const auto message, wire::Parse<wire::GpuResidency>(frame.payload()));
  TK_ASSIGN_OR_RETURN(const auto entries,
                      wire::ParseEntries<wire::GpuEntry>(frame.raw(), message.entry_count()));
  std::vector<GpuChunk> chunks(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    std::memcpy(chunks[i].chunk.bytes.data(), entries[i].chunk, sizeof(entries[i].chunk));
    chunks[i].bytes = entries[i].bytes;
  }
  if (gpu_ == nullptr)
    gpu_ = context_.store().OpenGpuEngine(tenant_.number, client_name_, peer_pid_);
  return gpu_->Report(chunks);
}

void ServerConnection::RunCall(wire::Frame& frame) {
  auto responder = std::make_shared<Responder>(weak_from_this(), frame.header());
  CallStarted();
  wire::FrameReader::Keep(frame);
  // Shared by the worker and, for its progress, the way back.
  auto kept = std::make_shared<wire::Frame>(std::move(frame));
  auto work = [responder, kept, gate = context_.gate(), tenant = tenant_,
               wanted = std::weak_ptr(wanted_), &context = context_] {
    absl::StatusOr<std::string> result =
        DeadlineExceeded("{}: waited too long for a worker", wire::TypeName(kept->header().type));
    if (!responder->expired() && kept->header().type != wire::VERIFY) {
      result = RunStoreCall(*tenant.store, *kept);
    } else if (!responder->expired()) {
      const auto push = [&](uint64_t done, uint64_t total) {
        wire::VerifyProgress progress;
        progress.set_done_bytes(done);
        progress.set_total_bytes(total);
        gate->Post([responder, payload = progress.SerializeAsString()] {
          responder->Push(wire::VERIFY_PROGRESS, payload);
        });
      };
      // It may take hours: not for a client that has gone, nor while the daemon stops.
      const auto cancelled = [&] {
        return wanted.expired() || context.draining() || responder->expired();
      };
      result = RunVerify(context.store(), tenant.number, *kept, push, cancelled);
      if (!result.ok() && responder->expired()) result = responder->Late();
    }
    gate->Post([responder, result = std::move(result)] {
      result.ok() ? responder->Reply(*result) : responder->Error(result.status());
    });
  };
  const wire::FrameHeader& header = responder->header();
  const absl::Status taken =
      RunOnWorker(wire::TypeName(header.type),
                  wire::FrameBytes(header.payload_bytes, header.raw_bytes), std::move(work));
  if (!taken.ok()) return responder->Error(taken);
  responder->ArmDeadline(responder);
}

// ---- hello -----------------------------------------------------------------------

absl::StatusOr<std::string> ServerConnection::TenantOf(const wire::Hello& hello) const {
  const std::vector<TenantRule>& rules = context_.options().tenants;
  if (!unix_socket_) return TenantForToken(rules, hello.token());
  return TenantForUid(rules, peer_uid_, ::geteuid());
}

void ServerConnection::HandleHello(const wire::Frame& frame) {
  const auto hello = wire::Parse<wire::Hello>(frame.payload());
  if (!hello.ok()) return Kick("bad_frame", hello.status());
  for (const char c : hello->client().substr(0, 64)) client_name_ += c < 0x20 ? '?' : c;
  if (hello->max_version() < wire::kMinProtocolVersion ||
      hello->min_version() > wire::kProtocolVersion) {
    return Kick("version",
                FailedPrecondition("hello: the client speaks protocol versions {} to {}, this "
                                   "daemon {} to {}",
                                   hello->min_version(), hello->max_version(),
                                   wire::kMinProtocolVersion, wire::kProtocolVersion));
  }
  const auto tenant = TenantOf(*hello);
  if (!tenant.ok()) return Kick("permission", tenant.status());
  state_ = State::kGreeting;
  auto work = [self = weak_from_this(), &context = context_, gate = context_.gate(),
               name = *tenant] {
    auto handle = context.OpenTenant(name);
    gate->Post([self, handle = std::move(handle)] {
      if (const auto connection = self.lock()) connection->FinishHello(handle);
    });
  };
  const absl::Status taken = RunOnWorker("hello", 0, std::move(work));
  if (!taken.ok()) Kick("overload", taken);
}

void ServerConnection::FinishHello(absl::StatusOr<TenantHandle> tenant) {
  if (state_ != State::kGreeting) return;
  if (!tenant.ok()) return Kick("tenant", tenant.status());
  tenant_ = *std::move(tenant);
  state_ = State::kOpen;
  life_timer_.cancel();
  wire::HelloReply reply;
  reply.set_version(wire::kProtocolVersion);
  reply.set_server_version(TURNKEEP_VERSION);
  reply.set_tenant(tenant_.name);
  reply.set_shared_memory(unix_socket_);
  reply.set_server_instance(context_.instance());
  reply.set_max_frame_bytes(context_.options().max_frame_bytes);
  reply.set_max_tickets(context_.options().max_tickets_per_connection);
  Send({.type = wire::HELLO, .flags = wire::kFlagReply}, reply.SerializeAsString());
  spdlog::debug("{}: open for tenant {}", Name(), tenant_.name);
}

// ---- calls -----------------------------------------------------------------------

absl::Status ServerConnection::RunOnWorker(std::string what, uint64_t bytes,
                                           std::function<void()> work) {
  return context_.RunOnWorker(
      {.what = std::move(what), .bytes = bytes, .connection_bytes = queued_bytes_},
      std::move(work));
}

void ServerConnection::CallStarted() {
  ++running_calls_;
  ++context_.totals().running_calls;
}

void ServerConnection::CallFinished(const wire::FrameHeader& header, absl::Duration latency,
                                    absl::StatusCode code) {
  if (state_ == State::kClosed) return;
  TK_CHECK(running_calls_ > 0);
  --running_calls_;
  --context_.totals().running_calls;
  context_.metrics().AddRequest(header.type, latency, code);
}

void ServerConnection::AddDeadline(std::shared_ptr<Responder> responder) {
  const bool earliest = deadlines_.empty() || responder->deadline() < deadlines_.begin()->first;
  deadlines_.emplace(responder->deadline(), std::move(responder));
  if (earliest) ArmDeadlineTimer();
}

void ServerConnection::ArmDeadlineTimer() {
  while (!deadlines_.empty() && deadlines_.begin()->second->answered()) {
    deadlines_.erase(deadlines_.begin());
  }
  if (deadlines_.empty()) return;
  deadline_timer_.expires_at(deadlines_.begin()->first);
  deadline_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& e) {
    if (e || self->state_ == State::kClosed) return;
    const auto now = Responder::Clock::now();
    while (!self->deadlines_.empty() && self->deadlines_.begin()->first <= now) {
      const auto responder = self->deadlines_.begin()->second;
      self->deadlines_.erase(self->deadlines_.begin());
      responder->Error(responder->Late());
      if (self->state_ == State::kClosed) return;
    }
    self->ArmDeadlineTimer();
  });
}

}  // namespace turnkeep
