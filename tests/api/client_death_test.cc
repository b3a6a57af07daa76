// A killed client leaves nothing: within one second its tickets, pins, slots and descriptors are
// gone.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <random>

#include <gtest/gtest.h>

#include "api/raw_connection.h"
#include "testing/client_factory.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"

extern char** environ;

namespace turnkeep::testing {
namespace {

constexpr int kKills = 200;

// A running kill_child that has said that its ticket is open.
class Child {
 public:
  Child(const std::string& socket, const char* mode, uint64_t seed) {
    int pipe[2];
    EXPECT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    const std::string number = std::to_string(seed);
    const char* argv[] = {TURNKEEP_KILL_CHILD, socket.c_str(), mode, number.c_str(), nullptr};
    EXPECT_EQ(::posix_spawn(&pid_, TURNKEEP_KILL_CHILD, &actions, nullptr, const_cast<char**>(argv),
                            environ),
              0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    char line[64] = {};
    ready_ = ::read(pipe[0], line, sizeof(line) - 1) > 0 &&
             std::sscanf(line, "ready %d", &grandchild_) == 1;
    ::close(pipe[0]);
  }
  ~Child() {
    Kill();
    if (grandchild_ > 0) ::kill(grandchild_, SIGKILL);
  }
  bool ready() const { return ready_; }
  pid_t pid() const { return pid_; }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  int grandchild_ = 0;
  bool ready_ = false;
};

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

class ClientDeath : public ::testing::Test {
 protected:
  void SetUp() override {
    auto client = daemon_.UnixClient();
    ASSERT_TRUE(client->RegisterLayout(SmallLayout()).ok());
    const KvPattern pattern(SmallLayout());
    KvContext context;
    context.Append(MakeTokens(1, 1000));
    ASSERT_TRUE(SaveAll(*client, pattern, {.session = "base", .context = &context}).ok());
    client.reset();
    ASSERT_TRUE(Eventually([&] { return daemon_.server().counts().connections == 0; }));
  }

  // What a client may leave behind.
  struct Held {
    uint64_t tickets, connections, granted, open_tickets, used, pinned;
    size_t descriptors;
    bool operator==(const Held&) const = default;
  };
  Held Now() {
    const ServerCounts counts = daemon_.server().counts();
    const StoreStatus status = daemon_.store().GetStatus();
    return {counts.tickets,      counts.connections,     counts.granted_segments,
            status.open_tickets, status.host.used_bytes, status.host.pinned_bytes,
            OpenDescriptors()};
  }

  DaemonHarness daemon_;
};

TEST_F(ClientDeath, TakesItsPagePoolWithIt) {
  auto client = daemon_.UnixClient();
  for (int i = 0; i < 10; ++i) {
    Child child(daemon_.socket_path(), "gpu", i);
    ASSERT_TRUE(child.ready());
    const Explanation held = client->Explain({.session = "base"}).value();
    ASSERT_EQ(held.gpu.size(), 1u);
    EXPECT_EQ(held.gpu[0].engine, "kill_child");
    EXPECT_EQ(held.gpu[0].pid, child.pid());
    EXPECT_EQ(held.gpu[0].token_count, 1000u);
    EXPECT_EQ(held.gpu[0].bytes, 1000 * held.gpu[0].chunk_count);
    EXPECT_EQ(client->ListSessions({}).value()[0].gpu_bytes, held.gpu[0].bytes);
    EXPECT_EQ(client->ShowSession("base")->spans[0].gpu_engines, 1u);
    child.Kill();
    ASSERT_TRUE(Eventually([&] { return client->Explain({.session = "base"})->gpu.empty(); },
                           absl::Seconds(1)));
    EXPECT_EQ(client->StatSession("base")->gpu_bytes, 0u);
  }
}

// Also when only the connection ends, and over a restart of the client's connection.
TEST_F(ClientDeath, AClosedConnectionTakesItsReportWithIt) {
  auto client = daemon_.UnixClient();
  auto engine = daemon_.UnixClient();
  std::vector<GpuChunk> chunks;
  const SessionDetail detail = client->ShowSession("base").value();
  for (const SessionSpan& span : detail.spans) chunks.push_back({span.chunk, 1});
  ASSERT_TRUE(engine->ReportGpuResidency(chunks).ok());
  ASSERT_TRUE(engine->StatSession("base").ok());
  ASSERT_EQ(client->StatSession("base")->gpu_bytes, chunks.size());
  engine.reset();
  ASSERT_TRUE(
      Eventually([&] { return client->StatSession("base")->gpu_bytes == 0; }, absl::Seconds(1)));
}

TEST_F(ClientDeath, LeavesNothingWithinASecond) {
  const uint64_t seed = 42;
  std::mt19937_64 random(seed);
  SCOPED_TRACE(fmt::format("seed {}", seed));
  const Held before = Now();
  for (int i = 0; i < kKills; ++i) {
    const char* mode = i % 2 == 0 ? "save" : "restore";
    Child child(daemon_.socket_path(), mode, 1000 + i);
    ASSERT_TRUE(child.ready()) << mode << " " << i;
    ASSERT_EQ(daemon_.server().counts().tickets, 1u);
    absl::SleepFor(absl::Microseconds(random() % 3000));
    child.Kill();
    ASSERT_TRUE(Eventually([&] { return Now() == before; }, absl::Seconds(1)))
        << mode << " " << i << ": tickets " << Now().tickets << " connections " << Now().connections
        << " used " << Now().used << "/" << before.used << " descriptors " << Now().descriptors
        << "/" << before.descriptors;
  }
  // Nothing half-done is visible, and what was there is whole.
  auto client = daemon_.UnixClient();
  const auto sessions = client->ListSessions({});
  ASSERT_TRUE(sessions.ok());
  EXPECT_EQ(sessions->size(), 1u);
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 1000));
  const auto outcome = RestoreAndCheck(*client, pattern, {.session = "base", .context = &context});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(outcome->token_count, 1000u);
}

TEST_F(ClientDeath, IsSeenThoughAChildHoldsTheSocket) {
  const Held before = Now();
  Child child(daemon_.socket_path(), "fork", 77);
  ASSERT_TRUE(child.ready());
  child.Kill();
  EXPECT_TRUE(Eventually([&] { return Now() == before; }, absl::Seconds(1)));
}

}  // namespace
}  // namespace turnkeep::testing
