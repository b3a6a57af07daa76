// The daemon dies and comes back: its clients get Unavailable and misses, never a crash, a hang
// or wrong bytes, and then are served again.
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/listen.h"
#include "api/raw_connection.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

KvContext ContextOfTokens(uint64_t seed, uint64_t count) {
  KvContext context;
  context.Append(MakeTokens(seed, count));
  return context;
}

class Reconnect : public ::testing::Test {
 protected:
  void SetUp() override {
    client_ = daemon_.UnixClient();
    ASSERT_TRUE(client_->RegisterLayout(pattern_.layout()).ok());
  }
  bool ServedAgain() {
    return Eventually([&] { return client_->Status().ok(); });
  }

  const KvPattern pattern_{SmallLayout()};
  const KvContext context_ = ContextOfTokens(1, 500);
  DaemonHarness daemon_{HarnessOptions{.disk_bytes = 64 * kMiB}};
  std::unique_ptr<Client> client_;
};

TEST_F(Reconnect, CallsFailWhileItIsAwayAndWorkAgainAfter) {
  ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "a", .context = &context_}).ok());
  const uint64_t instance = client_->server_info().instance;
  daemon_.Die();
  ASSERT_TRUE(Eventually([&] { return !client_->connected(); }));
  EXPECT_TRUE(absl::IsUnavailable(client_->Status().status()));
  EXPECT_TRUE(absl::IsUnavailable(client_->StatSession("a").status()));
  EXPECT_TRUE(absl::IsUnavailable(
      client_->BeginRestore({.session = "a", .layout = pattern_.fingerprint()}).status()));
  daemon_.Start();
  ASSERT_TRUE(ServedAgain());
  EXPECT_NE(client_->server_info().instance, instance);
  const auto outcome = RestoreAndCheck(*client_, pattern_, {.session = "a", .context = &context_});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->token_count, 500u);
  EXPECT_EQ(outcome->disk_tokens, 500u);
}

TEST_F(Reconnect, LayoutsAreRegisteredAgain) {
  DaemonHarness forgetful;  // keeps nothing over a restart
  auto client = forgetful.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern_.layout()).ok());
  forgetful.Die();
  forgetful.Start();
  ASSERT_TRUE(Eventually([&] { return client->Status().ok(); }));
  EXPECT_TRUE(SaveAll(*client, pattern_, {.session = "a", .context = &context_}).ok());
}

TEST_F(Reconnect, OpenSaveKeepsItsMemoryAndItsCommitFails) {
  auto save = BeginSaveOf(*client_, pattern_, {.session = "a", .context = &context_});
  ASSERT_TRUE(save.ok());
  daemon_.Die();
  ASSERT_TRUE(Eventually([&] { return !client_->connected(); }));
  // Writing goes on as if nothing had happened.
  for (size_t i = 0; i < (*save)->chunks().size(); ++i) {
    for (uint32_t layer = 0; layer < pattern_.layer_count(); ++layer) {
      for (std::byte& b : (*save)->Page(i, layer)) b = std::byte{1};
    }
  }
  EXPECT_TRUE(absl::IsUnavailable((*save)->FinishLayer(0)));
  EXPECT_FALSE((*save)->Commit(absl::Seconds(1)).ok());
  daemon_.Start();
  ASSERT_TRUE(ServedAgain());
  EXPECT_FALSE((*save)->Commit(absl::Seconds(1)).ok());
  save->reset();
  EXPECT_TRUE(absl::IsNotFound(client_->StatSession("a").status()));
}

TEST_F(Reconnect, OpenRestoreEndsInRightBytesOrAMiss) {
  ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "a", .context = &context_}).ok());
  for (const bool from_disk : {false, true}) {
    if (from_disk) {  // a restart empties the host tier
      daemon_.Die();
      daemon_.Start();
      ASSERT_TRUE(ServedAgain());
    }
    auto restore = client_->BeginRestore({.session = "a", .layout = pattern_.fingerprint()});
    ASSERT_TRUE(restore.ok()) << restore.status();
    daemon_.Die();
    ASSERT_TRUE(Eventually([&] { return !client_->connected(); }));
    const absl::Time start = absl::Now();
    const auto outcome = CheckTicket(**restore, pattern_, {.session = "a", .context = &context_});
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    if (outcome->token_count == 0) {
      EXPECT_THAT(outcome->miss_reason, HasSubstr("connection lost"));
    }
    daemon_.Start();
    ASSERT_TRUE(ServedAgain());
  }
}

TEST_F(Reconnect, TicketsOutliveTheClient) {
  ASSERT_TRUE(SaveAll(*client_, pattern_, {.session = "a", .context = &context_}).ok());
  auto save = BeginSaveOf(*client_, pattern_, {.session = "b", .context = &context_});
  auto restore = client_->BeginRestore({.session = "a", .layout = pattern_.fingerprint()});
  ASSERT_TRUE(save.ok() && restore.ok());
  client_.reset();
  EXPECT_FALSE((*save)->Commit(absl::Seconds(1)).ok());
  const auto outcome = CheckTicket(**restore, pattern_, {.session = "a", .context = &context_});
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  // The daemon must not give the slots to others while the tickets are there.
  EXPECT_EQ(daemon_.server().counts().tickets, 2u);
  save->reset();
  restore->reset();
  EXPECT_TRUE(Eventually([&] { return daemon_.server().counts().connections == 0; }));
  EXPECT_EQ(daemon_.server().counts().tickets, 0u);
}

TEST_F(Reconnect, ManyDeathsUnderLoadNeverGiveWrongBytes) {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> good{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const KvContext context = ContextOfTokens(100 + t, 300 + 50 * t);
      const std::string session = "load" + std::to_string(t);
      while (!stop.load()) {
        const auto stat = client_->StatSession(session);
        const uint64_t generation = stat.ok() ? stat->generation : 0;
        const auto saved = SaveAll(*client_, pattern_,
                                   {.session = session,
                                    .expected_generation = generation,
                                    .context = &context,
                                    .commit_deadline = absl::Seconds(5)});
        // Wrong bytes and contradictory tickets are Internal in these helpers.
        EXPECT_FALSE(absl::IsInternal(saved.status())) << saved.status();
        const auto outcome =
            RestoreAndCheck(*client_, pattern_, {.session = session, .context = &context});
        EXPECT_FALSE(absl::IsInternal(outcome.status())) << outcome.status();
        if (outcome.ok() && outcome->token_count == context.size()) ++good;
        if (!outcome.ok()) absl::SleepFor(absl::Milliseconds(1));
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    const uint64_t before = good.load();
    ASSERT_TRUE(Eventually([&] { return good.load() > before + 2; }));
    daemon_.Die();
    daemon_.Start();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(Connect, NobodyThereIsUnavailable) {
  TemporaryDirectory directory;
  const auto client = Client::Connect({.socket_path = directory.path() + "/none.sock"});
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
  EXPECT_THAT(MessageOf(client.status()), HasSubstr("is turnkeepd running?"));
}

TEST(Connect, MayStartBeforeTheDaemon) {
  DaemonHarness daemon;
  daemon.Die();
  ClientOptions options = daemon.UnixOptions();
  options.start_disconnected = true;
  auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(absl::IsUnavailable((*client)->Status().status()));
  daemon.Start();
  EXPECT_TRUE(Eventually([&] { return (*client)->Status().ok(); }));
}

// Hangs (and fails by the time limit of the test) when the end of a client overlooks a connection
// that is being made.
TEST(Connect, AClientMayBeClosedWhileItConnects) {
  DaemonHarness daemon;
  ClientOptions options = daemon.UnixOptions();
  options.start_disconnected = true;
  options.min_backoff = options.max_backoff = absl::Microseconds(50);
  std::mt19937_64 random(1);
  for (int round = 0; round < 10; ++round) {
    daemon.Die();
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 6; ++i) {
      auto client = Client::Connect(options);
      ASSERT_TRUE(client.ok()) << client.status();
      clients.push_back(*std::move(client));
    }
    daemon.Start();
    for (auto& client : clients) {
      absl::SleepFor(absl::Microseconds(random() % 100));
      client.reset();
    }
  }
}

TEST(Connect, DaemonThatDoesNotAnswerIsUnavailableInTime) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/mute.sock";
  auto listener = UnixListener::Open("socket", path);
  ASSERT_TRUE(listener.ok());
  const absl::Time start = absl::Now();
  const auto client =
      Client::Connect({.socket_path = path, .connect_timeout = absl::Milliseconds(100)});
  EXPECT_TRUE(absl::IsUnavailable(client.status())) << client.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(Connect, DaemonOfAnotherVersionIsNamedWithOurs) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/new.sock";
  auto listener = UnixListener::Open("socket", path);
  ASSERT_TRUE(listener.ok());
  const UniqueFd accepting(listener->ReleaseFd());
  std::thread daemon([&] {
    ASSERT_TRUE(WaitForFd(accepting.get(), POLLIN, absl::Now() + absl::Seconds(10)).ok());
    const UniqueFd fd(::accept(accepting.get(), nullptr, nullptr));
    const std::string answer = wire::EncodeFrameHead({.version = 9, .type = wire::HELLO}, "", 0);
    ::send(fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
    char drain[4096];
    while (::recv(fd.get(), drain, sizeof(drain), 0) > 0) {
    }
  });
  const auto client = Client::Connect({.socket_path = path});
  EXPECT_TRUE(absl::IsFailedPrecondition(client.status())) << client.status();
  EXPECT_THAT(MessageOf(client.status()), HasSubstr("version 9"));
  EXPECT_THAT(MessageOf(client.status()), HasSubstr("1 to 1"));
  daemon.join();
}

TEST(Connect, OptionsAreChecked) {
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Connect({}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Client::Connect({.socket_path = "/a", .tcp_address = "127.0.0.1:1"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Client::Connect({.tcp_address = "192.168.0.1:1"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Client::Connect({.socket_path = "/" + std::string(200, 'x')}).status()));
}

}  // namespace
}  // namespace turnkeep::testing
