// Kills a real turnkeepd under load with SIGKILL, over and over, and checks what it left.
//
//   crashtest --daemon FILE --turnkeep FILE --client FILE [--kills N] [--seed S] [--keep]
//
// Three processes: this one (the oracle), the daemon, and a client (crash_client.cc) that puts the
// load on it. After each kill the daemon is started again on the same directory, and
//   every session whose last change was acknowledged shows exactly that, with every byte right;
//   one whose change was under way shows what was before or what was to be;
//   no other session is there, and the counts of chunks equal those of a full scan.
// Every 25th time and at the end `turnkeep fsck` must find nothing. The caps are large, so
// that nothing is evicted. Exit code 0 only if all of it held.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <absl/time/clock.h>
#include <absl/time/time.h>

#include "api/client.h"
#include "core/status.h"
#include "regression/crash_record.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

struct Options {
  std::string daemon, turnkeep, client;
  int kills = 300;
  uint64_t seed = 1;
  bool keep = false;
};

constexpr absl::Duration kStartTimeout = absl::Seconds(30);

struct Process {
  pid_t pid = -1;
  int to = -1;    // its standard input
  int from = -1;  // its standard output
};

Process Spawn(const std::vector<std::string>& command, const std::string& error_file, bool pipes) {
  int in[2] = {-1, -1}, out[2] = {-1, -1};
  if (pipes && (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)) std::abort();
  const pid_t pid = fork();
  if (pid == 0) {
    const int error = open(error_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (error >= 0) dup2(error, STDERR_FILENO);
    if (pipes) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
    } else if (error >= 0) {
      dup2(error, STDOUT_FILENO);
    }
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  if (pipes) {
    close(in[0]);
    close(out[1]);
  }
  return {.pid = pid, .to = in[1], .from = out[0]};
}

int Wait(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

class CrashTest {
 public:
  explicit CrashTest(Options options)
      : options_(std::move(options)), random_(options_.seed), pattern_(BlockLayout()) {
    // Short: a socket's path has at most 107 bytes.
    std::string path = "/tmp/turnkeep-crash-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) std::abort();
    run_dir_ = path;
    const char* base = std::getenv("TMPDIR");
    std::string data = std::string(base != nullptr ? base : ".") + "/turnkeep-crash-XXXXXX";
    if (mkdtemp(data.data()) == nullptr) std::abort();
    data_dir_ = std::filesystem::absolute(data).string();
  }
  ~CrashTest() {
    if (daemon_.pid > 0) {
      kill(daemon_.pid, SIGKILL);
      Wait(daemon_.pid);
    }
    if (options_.keep || failed_) {
      std::printf("kept: %s (data), %s (logs)\n", data_dir_.c_str(), run_dir_.c_str());
      return;
    }
    std::filesystem::remove_all(run_dir_);
    std::filesystem::remove_all(data_dir_);
  }

  bool Run() {
    const absl::Time begun = absl::Now();
    for (cycle_ = 0; cycle_ < options_.kills && !failed_; ++cycle_) {
      StartDaemon();
      if (failed_) break;
      CheckAll();
      LoadAndKill();
      if (cycle_ % 25 == 24) Fsck();
    }
    if (!failed_) {
      StartDaemon();
      CheckAll();
      StopDaemon();
      Fsck();
    }
    std::printf(
        "%s: %d kills, seed %lu, %lu changes acknowledged, %lu under way at a kill, %lu tokens "
        "checked, %.0f s\n",
        failed_ ? "FAILED" : "ok", cycle_, static_cast<unsigned long>(options_.seed),
        static_cast<unsigned long>(acknowledged_), static_cast<unsigned long>(under_way_),
        static_cast<unsigned long>(checked_tokens_), absl::ToDoubleSeconds(absl::Now() - begun));
    return !failed_;
  }

 private:
  // What a session may show: one history, or two when a change was under way.
  using MayShow = std::set<std::string>;

  void Fail(const std::string& what) {
    failed_ = true;
    std::printf("cycle %d, seed %lu: %s\n", cycle_, static_cast<unsigned long>(options_.seed),
                what.c_str());
  }

  std::string Socket() const { return run_dir_ + "/tk.sock"; }

  void StartDaemon() {
    daemon_ = Spawn({options_.daemon, "--dir", run_dir_, "--listen.socket", Socket(),
                     "--listen.admin_socket", "none", "--store.data_dir", data_dir_ + "/data",
                     "--store.host_bytes", "64MiB", "--store.disk_bytes", "2GiB",
                     "--store.extent_file_bytes", "16MiB", "--store.durability", "write"},
                    run_dir_ + "/daemon.log", /*pipes=*/false);
    const absl::Time give_up = absl::Now() + kStartTimeout;
    while (true) {
      auto client = Client::Connect({.socket_path = Socket(), .reconnect = false});
      if (client.ok()) {
        client_ = *std::move(client);
        break;
      }
      int status = 0;
      if (waitpid(daemon_.pid, &status, WNOHANG) == daemon_.pid) {
        daemon_.pid = -1;
        return Fail(
            fmt::format("the daemon ended with status {} at start: see daemon.log", status));
      }
      if (absl::Now() > give_up)
        return Fail("the daemon does not answer: " + client.status().ToString());
      absl::SleepFor(absl::Milliseconds(2));
    }
    if (const auto layout = client_->RegisterLayout(pattern_.layout()); !layout.ok()) {
      Fail("register: " + layout.status().ToString());
    }
  }

  void StopDaemon() {
    client_.reset();
    kill(daemon_.pid, SIGTERM);
    const int status = Wait(daemon_.pid);
    daemon_.pid = -1;
    if (status != 0) Fail(fmt::format("SIGTERM: status {}", status));
  }

  void LoadAndKill() {
    client_.reset();
    const Process load = Spawn({options_.client, Socket(), std::to_string(random_())},
                               run_dir_ + "/client.log", /*pipes=*/true);
    std::string sessions;
    for (const auto& [name, may_show] : sessions_) {
      if (*may_show.begin() != kGone) sessions += name + " " + *may_show.begin() + "\n";
    }
    size_t at = 0;
    while (at < sessions.size()) {
      const ssize_t n = write(load.to, sessions.data() + at, sessions.size() - at);
      if (n <= 0) break;
      at += static_cast<size_t>(n);
    }
    close(load.to);
    // A kill in the first milliseconds meets the first saves, a late one the steady state.
    absl::SleepFor(absl::Microseconds(2000 + random_() % 120'000));
    kill(daemon_.pid, SIGKILL);
    Wait(daemon_.pid);
    daemon_.pid = -1;
    std::string lines;
    char buffer[65536];
    for (ssize_t n = 0; (n = read(load.from, buffer, sizeof(buffer))) > 0;) {
      lines.append(buffer, static_cast<size_t>(n));
    }
    close(load.from);
    if (const int status = Wait(load.pid); status != 0) {
      Fail(fmt::format("the client ended with status {}: see client.log", status));
    }
    Take(lines);
  }

  void Take(const std::string& lines) {
    std::istringstream stream(lines);
    for (std::string line; std::getline(stream, line);) {
      std::istringstream fields(line);
      char kind = 0;
      std::string name, history;
      fields >> kind >> name >> history;
      MayShow& may_show = sessions_[name];
      if (may_show.empty()) may_show.insert(std::string(kGone));
      if (kind == 'B') {
        may_show.insert(history);
        ++under_way_;
      } else if (kind == 'A') {
        may_show = {history};
        ++acknowledged_;
        --under_way_;
      } else {
        Fail("not durable under caps that are large: " + line);
      }
    }
  }

  void CheckAll() {
    const auto listed = client_->ListSessions({.limit = 100000});
    if (!listed.ok()) return Fail("list: " + listed.status().ToString());
    std::set<std::string> present;
    for (const SessionInfo& info : *listed) {
      present.insert(info.name);
      const auto known = sessions_.find(info.name);
      if (known == sessions_.end()) return Fail("session " + info.name + " was never saved");
      CheckSession(info, known->second);
    }
    for (auto& [name, may_show] : sessions_) {
      if (present.contains(name)) continue;
      if (!may_show.contains(std::string(kGone))) {
        Fail("session " + name + " is lost; its last acknowledged state: " + *may_show.begin());
      }
      may_show = {std::string(kGone)};
    }
    std::erase_if(sessions_,
                  [](const auto& entry) { return entry.second.contains(std::string(kGone)); });
    CheckAccounts();
  }

  // One of the histories must come back whole; it is the session's from then on.
  void CheckSession(const SessionInfo& info, MayShow& may_show) {
    std::string wrong;
    for (const std::string& history : may_show) {
      if (history == kGone) continue;
      const KvContext context = *ContextOfHistory(history);
      if (context.size() != info.token_count) continue;
      const auto restored = RestoreAndCheck(
          *client_, pattern_, {.session = info.name, .context = &context, .give_prompt = false});
      if (restored.ok() && restored->token_count == context.size()) {
        checked_tokens_ += context.size();
        may_show = {std::string(history)};
        return;
      }
      wrong += fmt::format("\n  {}: {}", history,
                           restored.ok() ? fmt::format("{} of {} tokens: {}", restored->token_count,
                                                       context.size(), restored->miss_reason)
                                         : restored.status().ToString());
    }
    std::string expected;
    for (const std::string& history : may_show) expected += "\n  may show " + history;
    Fail(fmt::format("session {} shows {} tokens (generation {}), restorable {}{}{}", info.name,
                     info.token_count, info.generation, info.restorable_tokens, wrong, expected));
  }

  void CheckAccounts() {
    if (failed_) return;
    const auto verified = client_->Verify({}, {});
    const auto status = client_->Status();
    if (!verified.ok() || !status.ok()) return Fail("verify: " + verified.status().ToString());
    if (verified->disk_copies_damaged + verified->host_copies_damaged > 0) {
      return Fail("verify: " + (verified->problems.empty() ? "damage" : verified->problems[0]));
    }
    std::set<ChunkId> chunks;
    uint64_t disk_bytes = 0;
    for (const auto& [name, unused] : sessions_) {
      const auto detail = client_->ShowSession(name);
      if (!detail.ok()) return Fail("show: " + detail.status().ToString());
      for (const SessionSpan& span : detail->spans) {
        if (chunks.insert(span.chunk).second && span.on_disk) disk_bytes += span.slot_bytes;
      }
    }
    if (status->chunk_count != chunks.size() || verified->chunks_checked != chunks.size() ||
        status->disk.used_bytes != disk_bytes) {
      Fail(fmt::format(
          "accounts: {} chunks and {} disk bytes, sessions show {} and {}, verify read {}",
          status->chunk_count, status->disk.used_bytes, chunks.size(), disk_bytes,
          verified->chunks_checked));
    }
  }

  void Fsck() {
    if (failed_) return;
    const Process fsck = Spawn({options_.turnkeep, "fsck", data_dir_ + "/data"},
                               run_dir_ + "/fsck.log", /*pipes=*/false);
    if (const int status = Wait(fsck.pid); status != 0) {
      Fail(fmt::format("turnkeep fsck: status {}: see fsck.log", status));
    }
  }

  const Options options_;
  std::mt19937_64 random_;
  const KvPattern pattern_;
  std::string run_dir_;
  std::string data_dir_;
  Process daemon_;
  std::unique_ptr<Client> client_;
  std::map<std::string, MayShow> sessions_;
  int cycle_ = 0;
  bool failed_ = false;
  uint64_t acknowledged_ = 0;
  uint64_t under_way_ = 0;
  uint64_t checked_tokens_ = 0;
};

int Usage(const std::string& what) {
  std::fprintf(
      stderr,
      "crashtest: %s\nusage: crashtest --daemon FILE --turnkeep FILE --client FILE [--kills N] "
      "[--seed S] [--keep]\n",
      what.c_str());
  return 2;
}

}  // namespace
}  // namespace turnkeep::testing

int main(int argc, char** argv) {
  using turnkeep::testing::Usage;
  turnkeep::testing::Options options;
  const std::map<std::string, std::string*> files = {{"--daemon", &options.daemon},
                                                     {"--turnkeep", &options.turnkeep},
                                                     {"--client", &options.client}};
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--keep") {
      options.keep = true;
      continue;
    }
    if (i + 1 == argc) return Usage(flag + " needs a value");
    const std::string value = argv[++i];
    if (const auto file = files.find(flag); file != files.end()) {
      *file->second = value;
    } else if (flag == "--kills") {
      options.kills = std::atoi(value.c_str());
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else {
      return Usage("unknown flag " + flag);
    }
  }
  for (const auto& [flag, file] : files) {
    if (access(file->c_str(), X_OK) != 0) return Usage(flag + " '" + *file + "' is no program");
  }
  if (options.kills < 1) return Usage("--kills must be at least 1");
  std::signal(SIGPIPE, SIG_IGN);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return turnkeep::testing::CrashTest(options).Run() ? 0 : 1;
}
