#include "api/server.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/listen.h"
#include "api/raw_connection.h"
#include "core/limits.h"
#include "core/status.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

TEST(Tenants, ComeFromTheUserOfTheProcess) {
  const std::vector<TenantRule> rules = {{.name = "alice", .uids = {1000, 1001}},
                                         {.name = "bob", .uids = {2000}},
                                         {.name = "tokens", .token = "0123456789abcdef"}};
  struct Case {
    uint32_t uid;
    uint32_t own_uid;
    const char* tenant;  // null: denied
  };
  const Case cases[] = {{1000, 5, "alice"},  {1001, 5, "alice"},   {2000, 5, "bob"},
                        {5, 5, "default"},   {0, 5, "default"},    {1002, 5, nullptr},
                        {65534, 5, nullptr}, {1000, 1000, "alice"}};
  for (const Case& c : cases) {
    const auto tenant = TenantForUid(rules, c.uid, c.own_uid);
    if (c.tenant == nullptr) {
      EXPECT_TRUE(absl::IsPermissionDenied(tenant.status())) << c.uid;
      EXPECT_THAT(MessageOf(tenant.status()), HasSubstr(std::to_string(c.uid)));
    } else {
      ASSERT_TRUE(tenant.ok());
      EXPECT_EQ(*tenant, c.tenant) << c.uid;
    }
  }
}

TEST(Tenants, RootMayBeMappedElsewhere) {
  EXPECT_EQ(*TenantForUid({{.name = "ops", .uids = {0}}}, 0, 5), "ops");
}

TEST(Tenants, ComeFromTheToken) {
  const std::vector<TenantRule> rules = {{.name = "uid only", .uids = {1}},
                                         {.name = "alice", .token = "alice has this token"},
                                         {.name = "bob", .token = "bob has that token"}};
  EXPECT_EQ(*TenantForToken(rules, "alice has this token"), "alice");
  EXPECT_EQ(*TenantForToken(rules, "bob has that token"), "bob");
  for (const char* bad : {"", "alice has this toke", "alice has this token ", "ALICE"}) {
    EXPECT_TRUE(absl::IsPermissionDenied(TenantForToken(rules, bad).status())) << bad;
  }
}

TEST(Server, SocketIsTheOwnersAlone) {
  DaemonHarness daemon({.admin = true});
  for (const std::string& path : {daemon.socket_path(), daemon.admin_socket_path()}) {
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u) << path;
    ASSERT_EQ(::stat(path.substr(0, path.rfind('/')).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700u) << path;
  }
}

TEST(Server, SecondOneOnTheSocketIsRefused) {
  DaemonHarness daemon;
  const auto second = Server::Start(daemon.store(), {.socket_path = daemon.socket_path()});
  EXPECT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  EXPECT_TRUE(daemon.UnixClient()->Status().ok());
}

TEST(Listener, ReplacesAStaleSocketOnly) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/s";
  {
    // A socket file whose process is gone.
    auto listener = UnixListener::Open("socket", path);
    ASSERT_TRUE(listener.ok()) << listener.status();
    ASSERT_EQ(::rename(path.c_str(), (path + "2").c_str()), 0);
  }
  ASSERT_EQ(::rename((path + "2").c_str(), path.c_str()), 0);
  EXPECT_TRUE(UnixListener::Open("socket", path).ok());
  std::ofstream(path) << "a file of somebody's";
  const auto refused = UnixListener::Open("socket", path);
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("not a socket"));
}

TEST(Listener, RefusesAFolderThatOthersCanWrite) {
  TemporaryDirectory directory;
  const std::string folder = directory.path() + "/open";
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(folder.c_str(), 0777), 0);
  const auto refused = UnixListener::Open("socket", folder + "/s");
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("0777"));
}

TEST(Listener, RefusesAFolderOfAnotherUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a folder away";
  TemporaryDirectory directory;
  const std::string folder = directory.path() + "/others";
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(::chown(folder.c_str(), 65534, 65534), 0);
  const auto refused = UnixListener::Open("socket", folder + "/s");
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("owner 65534"));
}

TEST(Listener, FollowsNoLinkToALock) {
  TemporaryDirectory directory;
  const std::string path = directory.path() + "/s";
  ASSERT_EQ(::symlink((directory.path() + "/elsewhere").c_str(), (path + ".lock").c_str()), 0);
  EXPECT_FALSE(UnixListener::Open("socket", path).ok());
  EXPECT_FALSE(std::filesystem::exists(directory.path() + "/elsewhere"));
}

TEST(Server, WildcardAndForeignAddressesAreRefused) {
  DaemonHarness daemon;
  for (const char* address : {"0.0.0.0:0", "[::]:0", "10.0.0.1:0", "localhost.example:0"}) {
    for (const bool admin : {false, true}) {
      ServerOptions options{.socket_path = daemon.dir() + "/other.sock",
                            .tenants = {{.name = "t", .token = "0123456789abcdef"}}};
      (admin ? options.admin_address : options.tcp_address) = address;
      const auto refused = Server::Start(daemon.store(), options);
      EXPECT_TRUE(absl::IsInvalidArgument(refused.status())) << address << refused.status();
      EXPECT_THAT(MessageOf(refused.status()), HasSubstr(address));
    }
  }
}

TEST(Server, TcpNeedsTheRightToken) {
  DaemonHarness daemon({.tcp = true});
  ClientOptions options = daemon.TcpOptions();
  options.tcp_token = "not the right token";
  EXPECT_TRUE(absl::IsPermissionDenied(Client::Connect(options).status()));
  options.tcp_token = "";
  EXPECT_TRUE(absl::IsPermissionDenied(Client::Connect(options).status()));
  EXPECT_EQ(daemon.TcpClient("alice")->server_info().tenant, "alice");
  EXPECT_FALSE(daemon.TcpClient("alice")->server_info().shared_memory);
}

TEST(Server, TenantsDoNotSeeEachOther) {
  DaemonHarness daemon({.tcp = true});
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 200));
  auto alice = daemon.TcpClient("alice");
  auto bob = daemon.TcpClient("bob");
  for (Client* client : {alice.get(), bob.get()}) {
    ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  }
  ASSERT_TRUE(SaveAll(*alice, pattern, {.session = "a", .context = &context}).ok());
  EXPECT_EQ(RestoreAndCheck(*alice, pattern, {.session = "a", .context = &context})->token_count,
            200);
  EXPECT_EQ(RestoreAndCheck(*bob, pattern, {.session = "a", .context = &context})->token_count, 0);
  EXPECT_EQ(RestoreAndCheck(*bob, pattern, {.context = &context})->token_count, 0);
  EXPECT_TRUE(bob->ListSessions({})->empty());
}

// The kernel passes at most 253 descriptors at once, the daemon 128 in a frame.
TEST(Server, ATicketMayLieInMoreSegmentsThanOneFrameCarries) {
  constexpr uint64_t kSegments = 300;
  DaemonHarness daemon({.host_bytes = 16 * kMiB, .host_segment_bytes = 16 * kKiB});
  const KvPattern pattern(TinyLayout());  // four slots of 4 KiB a segment
  const KvContext context = ContextOf(3, 16 * 4 * kSegments);
  const auto client = daemon.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  ASSERT_TRUE(SaveAll(*client, pattern, {.session = "s", .context = &context}).ok());
  EXPECT_EQ(daemon.server().counts().granted_segments, kSegments);
  const auto another = daemon.UnixClient();
  ASSERT_TRUE(another->RegisterLayout(pattern.layout()).ok());
  const auto restored = RestoreAndCheck(*another, pattern, {.session = "s", .context = &context});
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->token_count, context.size());
  EXPECT_EQ(daemon.server().counts().granted_segments, 2 * kSegments);
}

TEST(Server, BothSidesMaySleepAtOnceOrLookForMore) {
  DaemonHarness daemon;
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 200));
  for (const uint32_t server_us : {0u, 50u, kMaxBusyPollMicros}) {
    const std::string socket = daemon.dir() + "/" + std::to_string(server_us) + ".sock";
    const auto server =
        Server::Start(daemon.store(), {.socket_path = socket, .busy_poll_us = server_us});
    ASSERT_TRUE(server.ok()) << server.status();
    for (const absl::Duration client_busy : {absl::ZeroDuration(), absl::Milliseconds(10)}) {
      const auto client = Client::Connect({.socket_path = socket, .busy_poll = client_busy});
      ASSERT_TRUE(client.ok()) << client.status();
      ASSERT_TRUE((*client)->RegisterLayout(pattern.layout()).ok());
      (void)(*client)->DropSession("a");
      ASSERT_TRUE(SaveAll(**client, pattern, {.session = "a", .context = &context}).ok());
      EXPECT_EQ(
          RestoreAndCheck(**client, pattern, {.session = "a", .context = &context})->token_count,
          200);
    }
  }
}

TEST(Server, AnIdleServerSleeps) {
  DaemonHarness daemon;
  EXPECT_TRUE(daemon.UnixClient()->Status().ok());
  const auto processor_time = [] {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return absl::DurationFromTimespec(time);
  };
  const absl::Duration before = processor_time();
  absl::SleepFor(absl::Milliseconds(400));
  EXPECT_LT(processor_time() - before, absl::Milliseconds(200));  // of one core, 400 when awake
}

TEST(Server, BusyPollOutOfRangeIsRefused) {
  DaemonHarness daemon;
  const auto server = Server::Start(daemon.store(), {.socket_path = daemon.dir() + "/other.sock",
                                                     .busy_poll_us = kMaxBusyPollMicros + 1});
  EXPECT_THAT(MessageOf(server.status()), HasSubstr("busy_poll_us: 10001"));
  for (const absl::Duration busy : {absl::Microseconds(-1), absl::Microseconds(10'001)}) {
    const auto client = Client::Connect({.socket_path = daemon.socket_path(), .busy_poll = busy});
    EXPECT_TRUE(absl::IsInvalidArgument(client.status())) << client.status();
    EXPECT_THAT(MessageOf(client.status()), HasSubstr("busy_poll"));
  }
}

TEST(Server, DrainLetsRunningSavesFinishAndRefusesNewOnes) {
  DaemonHarness daemon;
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 200));
  auto client = daemon.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  auto save = BeginSaveOf(*client, pattern, {.session = "a", .context = &context});
  ASSERT_TRUE(save.ok());
  absl::Status drained = absl::UnknownError("");
  std::thread drainer([&] { drained = daemon.server().Drain(absl::Seconds(20)); });
  EXPECT_TRUE(Eventually([&] {
    auto second = BeginSaveOf(*client, pattern, {.session = "b", .context = &context});
    return absl::IsUnavailable(second.status());
  }));
  ASSERT_TRUE(FillTicket(**save, pattern, context).ok());
  EXPECT_TRUE((*save)->Commit(absl::Seconds(5)).ok());
  save->reset();
  drainer.join();
  EXPECT_TRUE(drained.ok()) << drained;
}

TEST(Server, DrainGivesUpOnATicketThatStays) {
  DaemonHarness daemon;
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 200));
  auto client = daemon.UnixClient();
  ASSERT_TRUE(client->RegisterLayout(pattern.layout()).ok());
  auto save = BeginSaveOf(*client, pattern, {.session = "a", .context = &context});
  ASSERT_TRUE(save.ok());
  const absl::Status drained = daemon.server().Drain(absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(drained));
  EXPECT_THAT(MessageOf(drained), HasSubstr("1 tickets"));
}

}  // namespace
}  // namespace turnkeep::testing
