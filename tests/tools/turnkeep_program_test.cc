// The program itself against a real turnkeepd: two processes, a socket, exit codes, pipes.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <absl/time/clock.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "api/client.h"
#include "testing/memory_kv_store.h"
#include "testing/temporary_directory.h"

extern char** environ;

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

pid_t Spawn(const std::vector<std::string>& arguments, int out, int err) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  pid_t pid = -1;
  EXPECT_EQ(posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ), 0) << argv[0];
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

int Wait(pid_t pid) {
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class TurnkeepProgram : public ::testing::Test {
 protected:
  void SetUp() override { StartDaemon(); }
  void TearDown() override { StopDaemon(); }

  std::string File(const std::string& name) const { return directory_.path() + "/" + name; }
  std::string daemon_dir() const { return File("tk"); }

  void StartDaemon() {
    const int log =
        open(File("daemon.log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    daemon_ = Spawn({TURNKEEPD_PROGRAM, "--dir", daemon_dir(), "--store.host_bytes", "64MiB",
                     "--store.disk_bytes", "256MiB", "--store.extent_file_bytes", "16MiB",
                     "--store.host_segment_bytes", "4MiB"},
                    log, log);
    close(log);
    // The client itself waits: it reconnects until the daemon answers.
    auto client = Client::Connect(
        {.socket_path = daemon_dir() + "/turnkeep.sock", .start_disconnected = true});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    absl::Status status = absl::UnavailableError("not tried");
    for (int i = 0; i < 600 && !status.ok(); ++i) {
      status = client_->Status().status();
      if (!status.ok()) absl::SleepFor(absl::Milliseconds(50));
    }
    ASSERT_TRUE(status.ok()) << status << "\n" << Content("daemon.log");
  }
  void StopDaemon() {
    client_.reset();
    if (daemon_ <= 0) return;
    kill(daemon_, SIGTERM);
    EXPECT_EQ(Wait(std::exchange(daemon_, -1)), 0) << Content("daemon.log");
  }

  std::string Content(const std::string& name) const {
    std::ifstream file(File(name), std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }

  // Runs turnkeep against the daemon and keeps its streams.
  int Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {TURNKEEP_PROGRAM, "--dir", daemon_dir()});
    const auto create = [&](const char* name) {
      return open(File(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    };
    const int out = create("out");
    const int err = create("err");
    const int code = Wait(Spawn(arguments, out, err));
    close(out);
    close(err);
    out_ = Content("out");
    err_ = Content("err");
    return code;
  }

  void Save(const std::string& session, uint32_t count) {
    const auto layout = client_->RegisterLayout(SmallLayout());
    ASSERT_TRUE(layout.ok()) << layout.status();
    std::vector<uint32_t> tokens(count);
    for (uint32_t i = 0; i < count; ++i) tokens[i] = i;
    const auto saved = SaveTokens(*client_, session, *layout, tokens);
    ASSERT_TRUE(saved.ok()) << saved.status();
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Client> client_;
  pid_t daemon_ = -1;
  std::string out_;
  std::string err_;
};

TEST_F(TurnkeepProgram, WorksOnTheSessionsOfADaemon) {
  Save("alice", 100);
  ASSERT_EQ(Run({"status"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("tenant default, shared memory"));
  ASSERT_EQ(Run({"ls", "--json"}), 0) << err_;
  EXPECT_EQ(nlohmann::json::parse(out_)["sessions"][0]["token_count"], 100);
  ASSERT_EQ(Run({"fork", "alice", "bob", "--tokens", "48"}), 0) << err_;
  ASSERT_EQ(Run({"tree"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("2 sessions"));
  ASSERT_EQ(Run({"explain", "alice"}), 0) << err_ << out_;
  ASSERT_EQ(Run({"verify"}), 0) << err_ << out_;
  ASSERT_EQ(Run({"export", "alice", File("a.tks")}), 0) << err_;
  ASSERT_EQ(Run({"truncate", "alice", "--oldest-half", "--keep-prefix", "10"}), 0) << err_;
  ASSERT_EQ(Run({"import", File("a.tks"), "--as", "carol"}), 0) << err_;
  ASSERT_EQ(Run({"pin", "carol"}), 0) << err_;
  ASSERT_EQ(Run({"top", "--once"}), 0) << err_;
  ASSERT_EQ(Run({"drop", "alice", "bob", "carol"}), 0) << err_;
  ASSERT_EQ(Run({"show", "alice"}), 3);
}

TEST_F(TurnkeepProgram, ExportedSessionSurvivesADaemonStopAndFsckIsClean) {
  Save("alice", 100);
  ASSERT_EQ(Run({"fsck", daemon_dir()}), 5) << err_;
  StopDaemon();
  ASSERT_EQ(Run({"fsck", daemon_dir()}), 0) << err_ << out_;
  StartDaemon();
  ASSERT_EQ(Run({"explain", "alice"}), 0) << err_ << out_;
}

TEST_F(TurnkeepProgram, WithoutADaemonSaysWhatToStart) {
  StopDaemon();
  EXPECT_EQ(Run({"ls"}), 4);
  EXPECT_EQ(out_, "");
  EXPECT_THAT(err_, HasSubstr("turnkeepd --dir " + daemon_dir()));
}

TEST_F(TurnkeepProgram, APolicyThatDoesNotExistIsSaidWithItsKey) {
  const int err = open(File("err").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  for (const char* policy : {"clairvoyant", "belady"}) {
    EXPECT_EQ(
        Wait(Spawn({TURNKEEPD_PROGRAM, "--check-config", "--store.policy", policy}, err, err)), 2);
    EXPECT_THAT(Content("err"), HasSubstr(std::string("store.policy: ")));
    EXPECT_THAT(Content("err"), HasSubstr(policy));
  }
  close(err);
}

TEST_F(TurnkeepProgram, ClosedPipeEndsQuietly) {
  Save("alice", 16);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  close(ends[0]);
  const int err = open(File("err").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const pid_t pid = Spawn({TURNKEEP_PROGRAM, "--dir", daemon_dir(), "ls"}, ends[1], err);
  close(ends[1]);
  close(err);
  EXPECT_EQ(Wait(pid), 0);
  EXPECT_EQ(Content("err"), "");
}

TEST_F(TurnkeepProgram, FullDiskUnderTheOutputIsAnError) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (full < 0) GTEST_SKIP() << "no /dev/full here";
  const int err = open(File("err").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  EXPECT_EQ(Wait(Spawn({TURNKEEP_PROGRAM, "--dir", daemon_dir(), "status"}, full, err)), 6);
  close(full);
  close(err);
  EXPECT_THAT(Content("err"), HasSubstr("standard output"));
}

}  // namespace
}  // namespace turnkeep::testing
