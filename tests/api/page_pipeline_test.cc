// Pages in frames. A client that reads page after page has several requests on their way at once,
// and not more than its bound: seen by a proxy between client and daemon. The daemon answers them
// in order, and copies no more of them than are soon taken.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include "api/frame.h"
#include "api/raw_connection.h"
#include "api/socket_connect.h"
#include "api/turnkeep.pb.h"
#include "api/unique_fd.h"
#include "api/wire_messages.h"
#include "core/limits.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/eventually.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

// Passes frames between one client and the daemon. The first answer to a PAGE_READ is held until
// `wanted` of them have been asked for, or for five seconds; after `ends_after` answers the
// connection ends; `holds` keeps all answers to PAGE_READ back until Release. With `ahead_fails`
// each page but a ticket's first header and page is answered so when asked for the first time, as
// a daemon does that held the request back too long, or that had too many of them.
struct ProxyOptions {
  int wanted = 1;
  int ends_after = 1 << 30;
  bool holds = false;
  absl::Status ahead_fails;
};
class Proxy {
 public:
  Proxy(uint16_t daemon_port, ProxyOptions options) : options_(options) {
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
  ~Proxy() { up_.join(); }

  uint16_t port() const { return port_; }
  void Release() {
    absl::MutexLock lock(&mutex_);
    options_.holds = false;
  }
  int in_flight() const {
    absl::MutexLock lock(&mutex_);
    return in_flight_;
  }
  int failed() const {
    absl::MutexLock lock(&mutex_);
    return failed_;
  }
  int most_in_flight() const {
    absl::MutexLock lock(&mutex_);
    return most_in_flight_;
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
      if (header.type == wire::PAGE_READ && !options_.ahead_fails.ok())
        Fail(header, replies, frame);
      if (!WriteAll(to, frame.data(), frame.size())) return;
      frame.resize(wire::kFrameHeaderBytes);
    }
  }

  // Remembers the requests that are to fail, and makes errors of their answers.
  void Fail(const wire::FrameHeader& header, bool reply, std::vector<std::byte>& frame) {
    if (!reply) {
      const std::string payload(
          reinterpret_cast<const char*>(frame.data()) + wire::kFrameHeaderBytes,
          header.payload_bytes);
      wire::PageRead request;
      ASSERT_TRUE(request.ParseFromString(payload));
      const bool first = request.span() == 0 && request.offset() == 0 &&
                         (request.layer() == 0 || request.layer() == kHeaderLayer);
      absl::MutexLock lock(&mutex_);
      if (seen_.insert(payload).second && !first) to_fail_.insert(header.request_id);
      return;
    }
    absl::MutexLock lock(&mutex_);
    if (to_fail_.erase(header.request_id) == 0) return;
    ++failed_;
    wire::Error error;
    wire::ToWire(options_.ahead_fails, &error);
    const std::string answer = wire::EncodeFrameHead(
        {.type = wire::ERROR, .request_id = header.request_id}, error.SerializeAsString(), 0);
    const auto bytes = std::as_bytes(std::span(answer));
    frame.assign(bytes.begin(), bytes.end());
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
  ProxyOptions options_ ABSL_GUARDED_BY(mutex_);
  int in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int most_in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int answers_ ABSL_GUARDED_BY(mutex_) = 0;
  int failed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> seen_ ABSL_GUARDED_BY(mutex_);
  std::set<uint64_t> to_fail_ ABSL_GUARDED_BY(mutex_);
  std::thread up_;
};

class PagePipeline : public ::testing::Test {
 protected:
  void Save(DaemonHarness& daemon) {
    const auto client = daemon.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
    ASSERT_TRUE(SaveAll(*client, pattern_, {.session = "s", .context = &context_}).ok());
  }
  std::unique_ptr<Client> Connect(DaemonHarness& daemon, const Proxy& proxy,
                                  absl::Duration request_timeout = absl::Seconds(10)) {
    ClientOptions options = daemon.TcpOptions();
    options.tcp_address = "127.0.0.1:" + std::to_string(proxy.port());
    options.reconnect = false;
    options.request_timeout = request_timeout;
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    if (!client.ok()) return nullptr;
    EXPECT_TRUE((*client)->RegisterLayout(pattern_.layout()).ok());
    return *std::move(client);
  }
  std::unique_ptr<RestoreTicket> Begin(Client& client) {
    auto begun = client.BeginRestore({.session = "s", .layout = pattern_.fingerprint()});
    EXPECT_TRUE(begun.ok()) << begun.status();
    return begun.ok() ? *std::move(begun) : nullptr;
  }
  // Of page reads in order, until one fails.
  absl::Status ReadAllPages(RestoreTicket& ticket) {
    std::vector<std::byte> page;
    for (uint32_t layer = 0; layer < pattern_.layout().layers.size(); ++layer) {
      TK_RETURN_IF_ERROR(ticket.WaitLayer(layer).status());
      for (size_t span = 0; span < ticket.spans().size(); ++span) {
        page.resize(GeometryOf(pattern_.layout(), ticket.spans()[span].chunk_token_count)
                        .page_bytes[layer]);
        TK_RETURN_IF_ERROR(ticket.ReadPage(span, layer, page));
      }
    }
    return absl::OkStatus();
  }

  const KvPattern pattern_{BlockLayout()};  // pages of 16 KiB
  const KvContext context_ = ContextOf(3, 64 * 20 + 7);
};

TEST_F(PagePipeline, PagesThatWillBeReadAreAskedForBeforeTheLastHasCome) {
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  // ReadPage reads a header and then its page: both are asked for ahead.
  Proxy proxy(daemon.server().tcp_port(), {.wanted = 9});
  {
    const auto client = Connect(daemon, proxy);
    ASSERT_NE(client, nullptr);
    for (const bool by_page : {false, true}) {
      const auto restored = RestoreAndCheck(
          *client, pattern_, {.session = "s", .context = &context_, .by_page = by_page});
      ASSERT_TRUE(restored.ok()) << restored.status();
      EXPECT_EQ(restored->token_count, context_.size());
    }
    // What was asked for and is not wanted any more is dropped with the ticket.
    auto ticket = Begin(*client);
    ASSERT_TRUE(ticket->WaitLayer(0).ok());
    ASSERT_TRUE(ticket->VerifyPage(0, 0).ok());
    ticket.reset();
    EXPECT_TRUE(client->StatSession("s").ok());
  }
  EXPECT_GE(proxy.most_in_flight(), 9);
  EXPECT_LE(proxy.most_in_flight(), 2 * 9);
}

TEST_F(PagePipeline, TheEndOfTheConnectionEndsAllThatIsOnItsWay) {
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  Proxy proxy(daemon.server().tcp_port(), {.ends_after = 30});
  {
    const auto client = Connect(daemon, proxy);
    ASSERT_NE(client, nullptr);
    auto ticket = Begin(*client);
    const absl::Status read = ReadAllPages(*ticket);
    EXPECT_TRUE(absl::IsUnavailable(read)) << read;
  }
  EXPECT_TRUE(Eventually([&] { return daemon.store().GetStatus().open_tickets == 0; }));
}

TEST_F(PagePipeline, APageThatDoesNotComeIsLateAndTheOthersAreForgotten) {
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  Proxy proxy(daemon.server().tcp_port(), {.holds = true});
  {
    const auto client = Connect(daemon, proxy, absl::Milliseconds(300));
    ASSERT_NE(client, nullptr);
    auto ticket = Begin(*client);
    const absl::Status read = ReadAllPages(*ticket);
    EXPECT_TRUE(absl::IsDeadlineExceeded(read)) << read;
    ticket.reset();
    proxy.Release();
    EXPECT_TRUE(Eventually([&] { return client->StatSession("s").ok(); }));
    auto again = Begin(*client);
    EXPECT_TRUE(ReadAllPages(*again).ok());
  }
}

// An engine may pause between two layers for longer than a request may take: what was asked for
// meanwhile is then late, and asked for again when it is wanted.
TEST_F(PagePipeline, WhatFailedBeforeItWasWantedIsAskedForAgain) {
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  for (const absl::Status& fails :
       {DeadlineExceeded("not done in time"), ResourceExhausted("too many wait")}) {
    SCOPED_TRACE(fails.ToString());
    Proxy proxy(daemon.server().tcp_port(), {.ahead_fails = fails});
    const auto client = Connect(daemon, proxy);
    ASSERT_NE(client, nullptr);
    auto ticket = Begin(*client);
    // All layers are there, so that every page but the first is asked for ahead.
    ASSERT_TRUE(ticket->WaitLayer(pattern_.layer_count() - 1, absl::Seconds(10)).ok());
    const absl::Status read = ReadAllPages(*ticket);
    EXPECT_TRUE(read.ok()) << read;
    EXPECT_EQ(ticket->token_count(), context_.size());
    EXPECT_GT(proxy.failed(), 20);
  }
}

// The daemon keeps a bounded number of page requests of one connection waiting, for all tickets.
TEST_F(PagePipeline, ManyRestoresTogetherAskForABoundedNumberAhead) {
  constexpr int kRestores = 24;
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  Proxy proxy(daemon.server().tcp_port(), {.holds = true});
  {
    const auto client = Connect(daemon, proxy);
    ASSERT_NE(client, nullptr);
    std::vector<std::unique_ptr<RestoreTicket>> tickets;
    for (int i = 0; i < kRestores; ++i) tickets.push_back(Begin(*client));
    std::vector<absl::Status> read(kRestores);
    std::vector<std::thread> threads;
    for (int i = 0; i < kRestores; ++i) {
      threads.emplace_back([&, i] { read[i] = ReadAllPages(*tickets[i]); });
    }
    // Until nobody asks for more.
    int unchanged = 0;
    int before = 0;
    EXPECT_TRUE(Eventually([&] {
      const int now = proxy.in_flight();
      unchanged = now == before ? unchanged + 1 : 0;
      before = now;
      return now >= 128 && unchanged > 50;
    }));
    EXPECT_LE(proxy.most_in_flight(), 128 + 2 * kRestores);
    proxy.Release();
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : read) EXPECT_TRUE(status.ok()) << status;
  }
}

// A client that asks for many pages and reads none of them yet.
class HastyClient : public PagePipeline {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(Save(daemon_));
    ASSERT_TRUE(raw_.Hello());
    wire::BeginRestoreRequest begin;
    begin.set_ticket(1);
    begin.set_session("s");
    begin.set_layout(wire::IdBytes(pattern_.fingerprint()));
    begin.set_max_tokens(UINT64_MAX);
    begin.set_deadline_us(1'000'000);
    ASSERT_TRUE(raw_.Request(wire::BEGIN_RESTORE, 1, begin));
    const auto plan = raw_.Receive();
    ASSERT_TRUE(plan.has_value());
    ASSERT_EQ(plan->header().type, wire::BEGIN_RESTORE);
  }
  // Requests number 100 to 100 + count - 1, of a page each.
  void AskFor(uint64_t count, uint64_t time_limit_us = 0) {
    wire::PageRead page;
    page.set_ticket(1);
    page.set_length(16 * kKiB);
    for (uint64_t i = 0; i < count; ++i) {
      page.set_span(static_cast<uint32_t>(i % 20));
      ASSERT_TRUE(raw_.SendFrame(
          {.type = wire::PAGE_READ, .request_id = 100 + i, .time_limit_us = time_limit_us},
          page.SerializeAsString()));
    }
  }
  void Receive(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      const auto answer = raw_.Receive();
      ASSERT_TRUE(answer.has_value()) << i;
      answer->header().type == wire::PAGE_READ ? ++pages_ : ++errors_;
    }
  }
  DaemonHarness daemon_{HarnessOptions{.server = {.max_outbound_bytes = kMiB}}};
  RawConnection raw_{daemon_.socket_path()};
  int pages_ = 0;  // received
  int errors_ = 0;
};

TEST_F(HastyClient, GetsItsPagesInOrderAndIsNoSlowReader) {
  ASSERT_NO_FATAL_FAILURE(AskFor(250));  // 4 MiB
  for (uint64_t i = 0; i < 250; ++i) {
    const auto page = raw_.Receive();
    ASSERT_TRUE(page.has_value()) << i;
    ASSERT_EQ(page->header().type, wire::PAGE_READ) << i;
    EXPECT_EQ(page->header().request_id, 100 + i);
    EXPECT_EQ(page->raw().size(), 16 * kKiB);
  }
}

TEST_F(HastyClient, IsRefusedWhatWouldWaitWithoutBound) {
  ASSERT_NO_FATAL_FAILURE(AskFor(600));
  // Nothing is taken before all are looked at: as many wait as may, and no answer is added.
  uint64_t outbound = 0;
  int unchanged = 0;
  ASSERT_TRUE(Eventually([&] {
    const ServerCounts counts = daemon_.server().counts();
    unchanged = counts.outbound_bytes == outbound ? unchanged + 1 : 0;
    outbound = counts.outbound_bytes;
    return counts.running_calls == 256 && unchanged > 50;
  }));
  ASSERT_NO_FATAL_FAILURE(Receive(600));
  EXPECT_GE(pages_, 256);
  EXPECT_GT(errors_, 0);
}

TEST_F(HastyClient, IsToldWhichPagesAreTooLate) {
  ASSERT_NO_FATAL_FAILURE(AskFor(250, 200'000));
  ASSERT_TRUE(Eventually([&] { return daemon_.server().counts().running_calls > 0; }));
  ASSERT_TRUE(Eventually([&] { return daemon_.server().counts().running_calls == 0; }));
  ASSERT_NO_FATAL_FAILURE(Receive(250));
  EXPECT_GT(pages_, 0);
  EXPECT_GT(errors_, 0);
}

}  // namespace
}  // namespace turnkeep::testing
