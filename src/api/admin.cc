#include "api/admin.h"

#include <optional>
#include <set>

#include <spdlog/spdlog.h>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "api/listen.h"
#include "api/paths.h"
#include "core/status.h"

namespace turnkeep {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

// GETs have no body, and nobody's headers are longer.
constexpr uint32_t kMaxHeaderBytes = 8 * kKiB;
constexpr uint64_t kMaxBodyBytes = 1 * kKiB;

using Stream = beast::basic_stream<asio::generic::stream_protocol>;
using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

class AdminImpl : public Admin {
 public:
  explicit AdminImpl(ServerContext& context)
      : context_(context), unix_acceptor_(context.io()), tcp_acceptor_(context.io()) {}

  absl::Status Listen();
  void Stop() override;
  uint16_t port() const override { return port_; }

 private:
  absl::Status ListenTcp();
  template <typename Acceptor>
  asio::awaitable<void> AcceptLoop(Acceptor& acceptor);
  asio::awaitable<void> Serve(std::shared_ptr<Stream> stream);
  asio::awaitable<AdminAnswer> AnswerTo(std::string method, std::string target);
  asio::awaitable<AdminAnswer> Metrics();
  template <typename Work>
  asio::awaitable<std::invoke_result_t<Work>> OnWorker(Work work);

  ServerContext& context_;
  std::optional<UnixListener> listener_;
  asio::local::stream_protocol::acceptor unix_acceptor_;
  asio::ip::tcp::acceptor tcp_acceptor_;
  uint16_t port_ = 0;
  // Sharers: this set and the coroutine that serves the stream.
  std::set<std::shared_ptr<Stream>> streams_;
};

absl::Status AdminImpl::Listen() {
  const std::string& path = context_.options().admin_socket_path;
  if (!path.empty()) {
    TK_ASSIGN_OR_RETURN(UnixListener listener, UnixListener::Open("admin socket", path));
    listener_.emplace(std::move(listener));
    boost::system::error_code error;
    unix_acceptor_.assign(asio::local::stream_protocol(), listener_->ReleaseFd(), error);
    if (error) return Internal("admin socket: {}: {}", path, error.message());
    asio::co_spawn(context_.io(), AcceptLoop(unix_acceptor_), asio::detached);
  }
  return ListenTcp();
}

absl::Status AdminImpl::ListenTcp() {
  const std::string& text = context_.options().admin_address;
  if (text.empty()) return absl::OkStatus();
  TK_ASSIGN_OR_RETURN(const LoopbackAddress address, ParseLoopbackAddress("admin_address", text));
  boost::system::error_code error;
  const asio::ip::tcp::endpoint endpoint(asio::ip::make_address(address.host, error), address.port);
  tcp_acceptor_.open(endpoint.protocol(), error);
  if (!error) tcp_acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) tcp_acceptor_.bind(endpoint, error);
  if (!error) tcp_acceptor_.listen(64, error);
  if (error == asio::error::address_in_use) {
    return AlreadyExists("admin_address: {} is in use", text);
  }
  if (error) return Unavailable("admin_address: listen on {}: {}", text, error.message());
  port_ = tcp_acceptor_.local_endpoint().port();
  asio::co_spawn(context_.io(), AcceptLoop(tcp_acceptor_), asio::detached);
  return absl::OkStatus();
}

void AdminImpl::Stop() {
  boost::system::error_code ignored;
  unix_acceptor_.close(ignored);
  tcp_acceptor_.close(ignored);
  for (const auto& stream : streams_) stream->close();
}

template <typename Acceptor>
asio::awaitable<void> AdminImpl::AcceptLoop(Acceptor& acceptor) {
  for (;;) {
    boost::system::error_code error;
    auto socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
    if (error == asio::error::operation_aborted || !acceptor.is_open()) co_return;
    if (error) {
      asio::steady_timer pause(context_.io(), std::chrono::milliseconds(100));
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    if (streams_.size() >= context_.options().max_admin_connections) {
      spdlog::warn("admin: {} connections are open, the limit; one more was refused",
                   streams_.size());
      continue;  // closes it
    }
    auto stream =
        std::make_shared<Stream>(asio::generic::stream_protocol::socket(std::move(socket)));
    streams_.insert(stream);
    asio::co_spawn(context_.io(), Serve(stream),
                   [this, stream](std::exception_ptr) { streams_.erase(stream); });
  }
}

asio::awaitable<void> AdminImpl::Serve(std::shared_ptr<Stream> stream) {
  const auto timeout =
      std::chrono::nanoseconds(absl::ToInt64Nanoseconds(context_.options().admin_timeout));
  beast::flat_buffer buffer(kMaxHeaderBytes + kMaxBodyBytes);
  for (;;) {
    http::request_parser<http::string_body> parser;
    parser.header_limit(kMaxHeaderBytes);
    parser.body_limit(kMaxBodyBytes);
    stream->expires_after(timeout);
    boost::system::error_code error;
    co_await http::async_read(*stream, buffer, parser,
                              asio::redirect_error(asio::use_awaitable, error));
    if (error == http::error::end_of_stream || error == beast::error::timeout) break;
    AdminAnswer answer;
    const bool bad = static_cast<bool>(error);
    if (bad) {
      if (error.category() != http::make_error_code(http::error::bad_method).category()) break;
      const bool large = error == http::error::header_limit || error == http::error::body_limit ||
                         error == http::error::buffer_overflow;
      answer = ErrorAnswer(large ? 413 : 400, error.message());
    } else {
      answer = co_await AnswerTo(std::string(parser.get().method_string()),
                                 std::string(parser.get().target()));
    }
    Response response;
    response.version(11);
    response.result(answer.status);
    response.set(http::field::content_type, answer.content_type);
    response.set(http::field::cache_control, "no-store");
    if (answer.status == 405) response.set(http::field::allow, "GET, HEAD");
    response.keep_alive(!bad && parser.get().keep_alive());
    response.body() = std::move(answer.body);
    response.prepare_payload();
    if (!bad && parser.get().method() == http::verb::head) response.body().clear();
    stream->expires_after(timeout);
    co_await http::async_write(*stream, response, asio::redirect_error(asio::use_awaitable, error));
    if (error || !response.keep_alive()) break;
  }
  boost::system::error_code ignored;
  stream->socket().shutdown(asio::socket_base::shutdown_send, ignored);
}

template <typename Work>
asio::awaitable<std::invoke_result_t<Work>> AdminImpl::OnWorker(Work work) {
  using Result = std::invoke_result_t<Work>;
  auto run = [](Work w) -> asio::awaitable<Result> { co_return w(); };
  co_return co_await asio::co_spawn(context_.workers(), run(std::move(work)), asio::use_awaitable);
}

asio::awaitable<AdminAnswer> AdminImpl::AnswerTo(std::string method, std::string target) {
  const size_t question = std::min(target.find('?'), target.size());
  const std::string path = target.substr(0, question);
  const std::string query = target.substr(std::min(question + 1, target.size()));
  const bool known = path == "/healthz" || path == "/readyz" || path == "/metrics" ||
                     path == "/v1/status" || path == "/v1/sessions" || path == "/v1/activity";
  if (!known) co_return ErrorAnswer(404, fmt::format("no such path: {}", path));
  if (method != "GET" && method != "HEAD") {
    co_return ErrorAnswer(405, fmt::format("{}: this interface is read-only", method));
  }
  Store* store = &context_.store();
  if (path == "/healthz") co_return AdminAnswer{.content_type = "text/plain", .body = "ok\n"};
  if (path == "/readyz") {
    if (context_.draining()) {
      co_return AdminAnswer{.status = 503, .content_type = "text/plain", .body = "draining\n"};
    }
    co_return AdminAnswer{.content_type = "text/plain", .body = "ready\n"};
  }
  if (path == "/metrics") co_return co_await Metrics();
  if (path == "/v1/status") {
    auto work = [store] { return StatusAnswer(*store); };
    co_return co_await OnWorker(work);
  }
  if (path == "/v1/activity") {
    auto work = [store, query] { return ActivityAnswer(*store, query); };
    co_return co_await OnWorker(work);
  }
  auto work = [store, query] { return SessionsAnswer(*store, query); };
  co_return co_await OnWorker(work);
}

asio::awaitable<AdminAnswer> AdminImpl::Metrics() {
  Store* store = &context_.store();
  auto work = [store] { return store->GetStatus(); };
  const StoreStatus status = co_await OnWorker(work);
  // Back on the server's thread, whose counts these are.
  AdminAnswer answer;
  answer.content_type = "text/plain; version=0.0.4; charset=utf-8";
  answer.body = PrometheusText(status, context_.metrics(), context_.Gauges());
  co_return answer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Admin>> Admin::Start(ServerContext& context) {
  auto admin = std::make_unique<AdminImpl>(context);
  TK_RETURN_IF_ERROR(admin->Listen());
  return admin;
}

}  // namespace turnkeep
