#include "api/server.h"

#include <array>
#include <chrono>
#include <future>
#include <optional>
#include <thread>

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <spdlog/spdlog.h>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>

#include "api/admin.h"
#include "api/listen.h"
#include "api/server_connection.h"
#include "api/server_context.h"
#include "core/ids.h"
#include "core/status.h"

namespace turnkeep {

namespace asio = boost::asio;

absl::StatusOr<std::string> TenantForUid(const std::vector<TenantRule>& rules, uint32_t uid,
                                         uint32_t own_uid) {
  for (const TenantRule& rule : rules) {
    for (const uint32_t allowed : rule.uids) {
      if (allowed == uid) return rule.name;
    }
  }
  if (uid == own_uid || uid == 0) return std::string(kDefaultTenant);
  return PermissionDenied("hello: user {} belongs to no tenant", uid);
}

absl::StatusOr<std::string> TenantForToken(const std::vector<TenantRule>& rules,
                                           const std::string& token) {
  // Digests have one length, so the comparison tells nothing about the tokens'; all are
  // compared, so its time does not tell which one it was.
  const auto digest_of = [](const std::string& text) {
    std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
    SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
    return digest;
  };
  const auto given = digest_of(token);
  const TenantRule* found = nullptr;
  for (const TenantRule& rule : rules) {
    if (rule.token.empty()) continue;
    const auto known = digest_of(rule.token);
    if (CRYPTO_memcmp(known.data(), given.data(), given.size()) == 0) found = &rule;
  }
  if (found == nullptr) return PermissionDenied("hello: the token is no tenant's");
  return found->name;
}

namespace {

absl::Status CheckOptions(const ServerOptions& options) {
  const auto range = [](const char* name, uint64_t value, uint64_t low, uint64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return InvalidArgument("{}: {} is outside {} to {}", name, value, low, high);
  };
  TK_RETURN_IF_ERROR(CheckSocketPath("socket_path", options.socket_path));
  TK_RETURN_IF_ERROR(range("max_connections", options.max_connections, 1, kMaxConnections));
  TK_RETURN_IF_ERROR(range("max_tickets_per_connection", options.max_tickets_per_connection, 1,
                           kMaxTicketsPerConnection));
  TK_RETURN_IF_ERROR(range("max_frame_bytes", options.max_frame_bytes, 4096, kMaxFrameBytes));
  TK_RETURN_IF_ERROR(
      range("max_outbound_bytes", options.max_outbound_bytes, 4096, kMaxOutboundQueueBytes));
  TK_RETURN_IF_ERROR(range("worker_threads", options.worker_threads, 1, 256));
  TK_RETURN_IF_ERROR(range("max_queued_calls", options.max_queued_calls, 1, 65536));
  TK_RETURN_IF_ERROR(range("max_queued_bytes", options.max_queued_bytes,
                           2 * uint64_t{options.max_frame_bytes}, 1024 * kGiB));
  TK_RETURN_IF_ERROR(range("max_admin_connections", options.max_admin_connections, 1, 1024));
  TK_RETURN_IF_ERROR(range("busy_poll_us", options.busy_poll_us, 0, kMaxBusyPollMicros));
  bool any_token = false;
  for (const TenantRule& rule : options.tenants) {
    TK_RETURN_IF_ERROR(ValidateName("tenant", rule.name));
    if (rule.token.empty()) continue;
    any_token = true;
    TK_RETURN_IF_ERROR(
        range("tenant token bytes", rule.token.size(), kMinTokenBytes, kMaxTokenBytes));
  }
  if (!options.tcp_address.empty() && !any_token) {
    return InvalidArgument("tcp_address: '{}' needs a tenant with a token", options.tcp_address);
  }
  return absl::OkStatus();
}

}  // namespace

class Server::Impl {
 public:
  Impl(Store& store, ServerOptions options)
      : context_(store, std::move(options)),
        work_(context_.io().get_executor()),
        unix_acceptor_(context_.io()),
        tcp_acceptor_(context_.io()),
        backoff_(context_.io()) {}
  ~Impl();

  absl::Status Start();
  absl::Status Drain(absl::Duration deadline);
  ServerCounts Counts();
  uint16_t tcp_port() const { return tcp_port_; }
  uint16_t admin_port() const { return admin_ ? admin_->port() : 0; }

 private:
  // Runs `work` on the server's thread and returns its result.
  template <typename Work>
  auto OnThread(Work work) -> decltype(work());
  absl::Status ListenTcp();
  // The server's thread: handles events until the server stops.
  void Serve();
  template <typename Acceptor>
  void Accept(Acceptor& acceptor, bool unix_socket);
  void Accepted(ServerConnection::Socket socket, bool unix_socket);

  ServerContext context_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::optional<UnixListener> listener_;
  asio::local::stream_protocol::acceptor unix_acceptor_;
  asio::ip::tcp::acceptor tcp_acceptor_;
  asio::steady_timer backoff_;
  uint16_t tcp_port_ = 0;
  std::unique_ptr<Admin> admin_;
  std::thread thread_;
};

template <typename Work>
auto Server::Impl::OnThread(Work work) -> decltype(work()) {
  std::packaged_task<decltype(work())()> task(std::move(work));
  auto result = task.get_future();
  asio::post(context_.io(), std::move(task));
  return result.get();
}

absl::Status Server::Impl::Start() {
  const ServerOptions& options = context_.options();
  TK_RETURN_IF_ERROR(CheckOptions(options));
  TK_ASSIGN_OR_RETURN(UnixListener listener, UnixListener::Open("socket", options.socket_path));
  listener_.emplace(std::move(listener));
  boost::system::error_code error;
  unix_acceptor_.assign(asio::local::stream_protocol(), listener_->ReleaseFd(), error);
  if (error) return Internal("listen on {}: {}", options.socket_path, error.message());
  TK_RETURN_IF_ERROR(ListenTcp());
  TK_ASSIGN_OR_RETURN(admin_, Admin::Start(context_));
  Accept(unix_acceptor_, true);
  if (tcp_acceptor_.is_open()) Accept(tcp_acceptor_, false);
  thread_ = std::thread([this] { Serve(); });
  return absl::OkStatus();
}

void Server::Impl::Serve() {
  using Clock = std::chrono::steady_clock;
  asio::io_context& io = context_.io();
  const std::chrono::microseconds busy(context_.options().busy_poll_us);
  Clock::time_point idle_since = Clock::now();
  while (!io.stopped()) {
    const bool handled = io.poll() > 0;
    const Clock::time_point now = Clock::now();
    if (handled) {
      idle_since = now;
    } else if (now - idle_since < busy) {
      std::this_thread::yield();
    } else {
      io.run_one();
      idle_since = Clock::now();
    }
  }
}

absl::Status Server::Impl::ListenTcp() {
  const std::string& text = context_.options().tcp_address;
  if (text.empty()) return absl::OkStatus();
  TK_ASSIGN_OR_RETURN(const LoopbackAddress address, ParseLoopbackAddress("tcp_address", text));
  boost::system::error_code error;
  const asio::ip::tcp::endpoint endpoint(asio::ip::make_address(address.host, error), address.port);
  tcp_acceptor_.open(endpoint.protocol(), error);
  if (!error) tcp_acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) tcp_acceptor_.bind(endpoint, error);
  if (!error) tcp_acceptor_.listen(128, error);
  if (error == asio::error::address_in_use) {
    return AlreadyExists("tcp_address: {} is in use", text);
  }
  if (error) return Unavailable("tcp_address: listen on {}: {}", text, error.message());
  tcp_port_ = tcp_acceptor_.local_endpoint().port();
  return absl::OkStatus();
}

template <typename Acceptor>
void Server::Impl::Accept(Acceptor& acceptor, bool unix_socket) {
  acceptor.async_accept([this, &acceptor, unix_socket](const boost::system::error_code& error,
                                                       typename Acceptor::protocol_type::socket s) {
    if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
    if (!error) {
      if constexpr (std::is_same_v<Acceptor, asio::ip::tcp::acceptor>) {
        boost::system::error_code ignored;
        s.set_option(asio::ip::tcp::no_delay(true), ignored);
      }
      Accepted(ServerConnection::Socket(std::move(s)), unix_socket);
      return Accept(acceptor, unix_socket);
    }
    // Out of descriptors or memory: trying again at once would only spin.
    spdlog::warn("accept: {}", error.message());
    backoff_.expires_after(std::chrono::milliseconds(100));
    backoff_.async_wait([this, &acceptor, unix_socket](const boost::system::error_code& e) {
      if (!e) Accept(acceptor, unix_socket);
    });
  });
}

void Server::Impl::Accepted(ServerConnection::Socket socket, bool unix_socket) {
  if (context_.connection_count() >= context_.options().max_connections) {
    spdlog::warn("accept: {} connections are open, the limit; one more was refused",
                 context_.connection_count());
    context_.metrics().AddDisconnect("too_many_connections");
    return;  // closes it
  }
  boost::system::error_code ignored;
  socket.set_option(asio::socket_base::send_buffer_size(1 << 20), ignored);
  socket.set_option(asio::socket_base::receive_buffer_size(1 << 20), ignored);
  auto connection = std::make_shared<ServerConnection>(context_, std::move(socket), unix_socket);
  context_.Add(connection);
  connection->Start();
}

absl::Status Server::Impl::Drain(absl::Duration deadline) {
  OnThread([this] {
    boost::system::error_code ignored;
    unix_acceptor_.close(ignored);
    tcp_acceptor_.close(ignored);
    context_.StartDraining();
    return 0;
  });
  const absl::Time end = absl::Now() + deadline;
  for (;;) {
    const ServerCounts counts = Counts();
    if (counts.tickets == 0 && counts.running_calls == 0) return absl::OkStatus();
    if (absl::Now() >= end) {
      return DeadlineExceeded("drain: {} tickets and {} calls are still running", counts.tickets,
                              counts.running_calls);
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

ServerCounts Server::Impl::Counts() {
  return OnThread([this] {
    const ServerContext::Totals& totals = context_.totals();
    return ServerCounts{.connections = context_.connection_count(),
                        .tickets = totals.tickets,
                        .running_calls = totals.running_calls,
                        .queued_bytes = context_.queued_bytes(),
                        .outbound_bytes = totals.outbound_bytes,
                        .granted_segments = totals.granted_segments,
                        .disconnects = context_.metrics().disconnects()};
  });
}

Server::Impl::~Impl() {
  if (!thread_.joinable()) return;
  OnThread([this] {
    boost::system::error_code ignored;
    unix_acceptor_.close(ignored);
    tcp_acceptor_.close(ignored);
    backoff_.cancel();
    admin_->Stop();
    context_.CloseAll("the daemon stops");
    return 0;
  });
  work_.reset();
  // Handlers of closed sockets still run; a call on a worker thread has nobody to answer.
  context_.gate()->Close();
  thread_.join();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Store& store, ServerOptions options) {
  auto impl = std::make_unique<Impl>(store, std::move(options));
  TK_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

absl::Status Server::Drain(absl::Duration deadline) { return impl_->Drain(deadline); }
ServerCounts Server::counts() const { return impl_->Counts(); }
uint16_t Server::tcp_port() const { return impl_->tcp_port(); }
uint16_t Server::admin_port() const { return impl_->admin_port(); }

}  // namespace turnkeep
