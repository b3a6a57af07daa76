// Pages in frames. A client that reads page after page has several requests on their way at once,
// and not more than its bound: seen by a proxy between client and daemon. The daemon answers them
// in order, and copies no more of them than are soon taken.
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <absl/synchronization/mutex.h>
#include <gtest/gtest.h>

#include "api/frame.h"
#include "api/frame_proxy.h"
#include "api/raw_connection.h"
#include "api/turnkeep.pb.h"
#include "api/wire_messages.h"
#include "core/limits.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/eventually.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

// Each page but a ticket's first header and page is answered with an error when it is asked for the
// first time, as a daemon does that held the request back too long, or that had too many of them.
class FailsAhead {
 public:
  explicit FailsAhead(absl::Status error) : error_(std::move(error)) {}
  int failed() const {
    absl::MutexLock lock(&mutex_);
    return failed_;
  }
  void operator()(const wire::FrameHeader& header, std::vector<std::byte>& frame) {
    if (header.type != wire::PAGE_READ) return;
    absl::MutexLock lock(&mutex_);
    if (!header.reply()) {
      const std::string payload = FrameProxy::PayloadOf(header, frame);
      wire::PageRead request;
      ASSERT_TRUE(request.ParseFromString(payload));
      const bool first = request.span() == 0 && request.offset() == 0 &&
                         (request.layer() == 0 || request.layer() == kHeaderLayer);
      if (seen_.insert(payload).second && !first) to_fail_.insert(header.request_id);
    } else if (to_fail_.erase(header.request_id) > 0) {
      ++failed_;
      wire::Error error;
      wire::ToWire(error_, &error);
      FrameProxy::Replace({.type = wire::ERROR, .request_id = header.request_id},
                          error.SerializeAsString(), {}, frame);
    }
  }

 private:
  const absl::Status error_;
  mutable absl::Mutex mutex_;
  int failed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> seen_ ABSL_GUARDED_BY(mutex_);
  std::set<uint64_t> to_fail_ ABSL_GUARDED_BY(mutex_);
};

class PagePipeline : public ::testing::Test {
 protected:
  void Save(DaemonHarness& daemon) {
    const auto client = daemon.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
    ASSERT_TRUE(SaveAll(*client, pattern_, {.session = "s", .context = &context_}).ok());
  }
  std::unique_ptr<Client> Connect(DaemonHarness& daemon, const FrameProxy& proxy,
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
  FrameProxy proxy(daemon.server().tcp_port(), {.wanted = 9});
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
  FrameProxy proxy(daemon.server().tcp_port(), {.ends_after = 30});
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
  FrameProxy proxy(daemon.server().tcp_port(), {.holds = true});
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
    FailsAhead failing(fails);
    FrameProxy proxy(daemon.server().tcp_port(), {.alter = std::ref(failing)});
    const auto client = Connect(daemon, proxy);
    ASSERT_NE(client, nullptr);
    auto ticket = Begin(*client);
    // All layers are there, so that every page but the first is asked for ahead.
    ASSERT_TRUE(ticket->WaitLayer(pattern_.layer_count() - 1, absl::Seconds(10)).ok());
    const absl::Status read = ReadAllPages(*ticket);
    EXPECT_TRUE(read.ok()) << read;
    EXPECT_EQ(ticket->token_count(), context_.size());
    EXPECT_GT(failing.failed(), 20);
  }
}

// The daemon keeps a bounded number of page requests of one connection waiting, for all tickets.
TEST_F(PagePipeline, ManyRestoresTogetherAskForABoundedNumberAhead) {
  constexpr int kRestores = 24;
  DaemonHarness daemon({.tcp = true});
  ASSERT_NO_FATAL_FAILURE(Save(daemon));
  FrameProxy proxy(daemon.server().tcp_port(), {.holds = true});
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
    ASSERT_TRUE(raw_.BeginRestore(1, "s", pattern_.fingerprint()));
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
