// The load of the crash test: a client process that changes sessions until the daemon is gone, and
// tells its standard output what it asks for and what was acknowledged (crash_record.h).
//
//   crash_client SOCKET SEED < sessions
//
// Standard input: the sessions that there are, "<name> <history>" a line. Exit code 0: the daemon
// went away; 1: it misbehaved, and standard error says how.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <thread>
#include <vector>

#include "api/client.h"
#include "regression/crash_record.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

constexpr int kThreads = 2;
constexpr size_t kSessionsPerThread = 10;
constexpr uint64_t kMaxTokens = 1200;

std::atomic<bool> g_misbehaved{false};

void Say(char kind, const std::string& session, const std::string& history) {
  const std::string line = std::string(1, kind) + " " + session + " " + history + "\n";
  // At most PIPE_BUF bytes are written whole.
  if (line.size() > 4096 || write(STDOUT_FILENO, line.data(), line.size()) < 0) _exit(2);
}

class Load {
 public:
  Load(KvStore& kv, const KvPattern& pattern, int thread, uint64_t seed,
       std::map<std::string, std::string> sessions)
      : kv_(kv),
        pattern_(pattern),
        thread_(thread),
        random_(seed),
        sessions_(std::move(sessions)) {}

  void Run() {
    while (Step()) {
    }
  }

 private:
  // False when the daemon is gone.
  bool Step() {
    const uint64_t dice = random_() % 10;
    if (sessions_.empty() || (dice < 3 && sessions_.size() < kSessionsPerThread)) return Create();
    auto it = sessions_.begin();
    std::advance(it, static_cast<int64_t>(random_() % sessions_.size()));
    const std::string name = it->first;
    const std::string history = it->second;
    const KvContext context = *ContextOfHistory(history);
    if (dice < 4 || context.size() > kMaxTokens || history.size() > 300) return Drop(name);
    if (dice < 5 && context.size() > 10) return Truncate(name, history, context.size());
    if (dice < 6) return Fork(name, history);
    return Save(name, WithStep(history, 'a', random_() % 1000, 1 + random_() % 150));
  }

  bool Create() {
    // A third of them begin with the same tokens.
    const std::string first =
        random_() % 3 == 0 ? WithStep("", 'a', 1, 200) : WithStep("", 'a', random_() % 1000, 90);
    return Save(NewName(), first);
  }

  std::string NewName() {
    return "t" + std::to_string(thread_) + "-" + std::to_string(random_() % 1'000'000'000);
  }

  bool Save(const std::string& name, const std::string& history) {
    const KvContext context = *ContextOfHistory(history);
    uint64_t generation = 0;
    if (sessions_.contains(name)) {
      const auto info = kv_.StatSession(name);
      if (!info.ok()) return Failed("stat", name, info.status());
      generation = info->generation;
    }
    Say('B', name, history);
    const auto saved = SaveAll(
        kv_, pattern_, {.session = name, .expected_generation = generation, .context = &context});
    if (!saved.ok()) return Failed("save", name, saved.status());
    return Succeeded(name, history, saved->durable);
  }

  bool Fork(const std::string& name, const std::string& history) {
    if (sessions_.size() >= kSessionsPerThread) return true;
    const std::string target = NewName();
    Say('B', target, history);
    const auto info = kv_.ForkSession({.source = name, .target = target});
    if (!info.ok()) return Failed("fork", name, info.status());
    return Succeeded(target, history, true);
  }

  bool Truncate(const std::string& name, const std::string& history, uint64_t tokens) {
    const uint64_t begin = random_() % 2 == 0 ? 0 : random_() % (tokens - 2);
    const uint64_t end = std::min(tokens - 1, begin + 1 + random_() % (tokens / 2));
    if (begin >= end) return true;
    const std::string after = WithStep(history, 'd', begin, end);
    Say('B', name, after);
    const auto info = kv_.TruncateSession({.session = name, .drop_begin = begin, .drop_end = end});
    if (!info.ok()) return Failed("truncate", name, info.status());
    return Succeeded(name, after, true);
  }

  bool Drop(const std::string& name) {
    Say('B', name, std::string(kGone));
    const absl::Status dropped = kv_.DropSession(name);
    if (!dropped.ok()) return Failed("drop", name, dropped);
    Say('A', name, std::string(kGone));
    sessions_.erase(name);
    return true;
  }

  bool Succeeded(const std::string& name, const std::string& history, bool durable) {
    Say(durable ? 'A' : 'N', name, history);
    sessions_[name] = history;
    return true;
  }

  bool Failed(const char* what, const std::string& name, const absl::Status& status) {
    if (!absl::IsUnavailable(status)) {
      std::fprintf(stderr, "%s %s: %s\n", what, name.c_str(), status.ToString().c_str());
      g_misbehaved = true;
    }
    return false;
  }

  KvStore& kv_;
  const KvPattern& pattern_;
  const int thread_;
  std::mt19937_64 random_;
  std::map<std::string, std::string> sessions_;
};

int Main(const std::string& socket, uint64_t seed) {
  std::map<std::string, std::string> sessions[kThreads];
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream fields(line);
    std::string name, history;
    fields >> name >> history;
    if (name.size() < 2 || !ContextOfHistory(history)) return 1;
    sessions[name[1] - '0'][name] = history;
  }
  auto client = Client::Connect({.socket_path = socket, .reconnect = false});
  if (!client.ok()) return absl::IsUnavailable(client.status()) ? 0 : 1;
  const KvPattern pattern(BlockLayout());
  if (const auto layout = (*client)->RegisterLayout(pattern.layout()); !layout.ok()) {
    return absl::IsUnavailable(layout.status()) ? 0 : 1;
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Load(**client, pattern, i, seed * 31 + static_cast<uint64_t>(i), sessions[i]).Run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return g_misbehaved ? 1 : 0;
}

}  // namespace
}  // namespace turnkeep::testing

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "crash_client SOCKET SEED\n");
    return 1;
  }
  return turnkeep::testing::Main(argv[1], std::strtoull(argv[2], nullptr, 10));
}
