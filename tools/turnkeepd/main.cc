// turnkeepd: a Store behind a Server, configured by a file and flags, until SIGTERM.
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <thread>

#include <absl/synchronization/mutex.h>
#include <spdlog/spdlog.h>
#include <CLI/CLI.hpp>

#include "api/config.h"
#include "api/server.h"
#include "core/status.h"
#include "daemon_log.h"
#include "store/policy.h"

namespace turnkeep {
namespace {

// Exit codes; docs/operations.md repeats them.
enum ExitCode {
  kOk = 0,
  kFailed = 1,          // the store or a socket could not be opened, or the shutdown lost data
  kBadConfig = 2,       // also bad flags
  kAlreadyRunning = 3,  // another daemon has the data directory or a socket
  kInterrupted = 130,   // a second signal cut the shutdown short
};

struct Arguments {
  ConfigSources sources;
  bool check_config = false;
  bool print_config = false;
};

std::string ExitCodesHelp() {
  return "Exit codes:\n"
         "  0    stopped by SIGTERM or SIGINT, everything that durability asks for is on disk\n"
         "  1    the store or a socket could not be opened, or closing the store failed\n"
         "  2    a flag or the configuration is wrong; the message names key, value and line\n"
         "  3    another daemon uses the data directory or a socket\n"
         "  130  a second signal cut the shutdown short\n"
         "\n"
         "Examples:\n"
         "  turnkeepd                                  defaults, everything in one folder\n"
         "  turnkeepd --dir /srv/turnkeep --store.disk_bytes 500GiB\n"
         "  turnkeepd --config /etc/turnkeep.toml --check-config\n";
}

// Said with the key, and by --check-config too: the configuration's reader does not know the names.
absl::Status CheckPolicy(const DaemonConfig& config) {
  const std::string& name = config.store.policy;
  if (name == "belady") {
    return InvalidArgument("store.policy: 'belady' must be told the future: it is for replay only");
  }
  const absl::Status made = MakePolicy(name).status();
  return made.ok() ? made : InvalidArgument("store.policy: {}", MessageOf(made));
}

// Every key of the configuration as a flag.
void AddFlags(CLI::App& app, Arguments& arguments) {
  app.add_option("--config", arguments.sources.file, "TOML file")->type_name("FILE");
  app.add_flag("--check-config", arguments.check_config, "check the configuration and exit");
  app.add_flag("--print-config", arguments.print_config,
               "print the effective configuration as TOML and exit");
  for (const ConfigKey& key : ConfigKeys()) {
    app.add_option_function<std::string>(
           "--" + key.name,
           [&arguments, name = key.name](const std::string& text) {
             arguments.sources.overrides.emplace_back(name, text);
           },
           fmt::format("{} [{}]", key.help, key.default_text))
        ->type_name("VALUE");
  }
  app.add_option_function<std::vector<std::string>>(
         "--tenant",
         [&arguments](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) {
             arguments.sources.overrides.emplace_back("tenant", text);
           }
         },
         "a tenant as NAME:UID,UID:TOKEN_FILE; may be repeated")
      ->type_name("TENANT");
}

// Clients hold one descriptor each, segments and files one more; the soft limit is often 1024.
void RaiseFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    spdlog::warn("the limit of open files stays at {}", limit.rlim_cur);
  }
}

int ExitCodeOf(const absl::Status& status) {
  if (absl::IsAlreadyExists(status) || absl::IsFailedPrecondition(status)) return kAlreadyRunning;
  return absl::IsInvalidArgument(status) ? kBadConfig : kFailed;
}

int Fail(const char* what, const absl::Status& status) {
  spdlog::critical("{}: {}", what, MessageOf(status));
  return ExitCodeOf(status);
}

// SIGTERM and SIGINT, waited for instead of handled. Threads inherit the mask, so this comes first.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGHUP, SIG_IGN);
  }
  int Wait() const {
    int signal = 0;
    sigwait(&set_, &signal);
    return signal;
  }

 private:
  sigset_t set_;
};

int Stop(Store& store, std::unique_ptr<Server> server, const DaemonConfig& config) {
  const absl::Status drained = server->Drain(config.drain_timeout);
  if (!drained.ok()) spdlog::warn("{}; abandoned", MessageOf(drained));
  server.reset();
  const absl::Status closed = store.Close(config.flush_timeout);
  if (!closed.ok()) return Fail("close the store", closed);
  spdlog::info("stopped");
  return kOk;
}

int Run(const DaemonConfig& config, const StopSignals& signals) {
  spdlog::info("turnkeepd {} starts, pid {}", TURNKEEP_VERSION, ::getpid());
  auto store = Store::Open(config.store);
  if (!store.ok()) return Fail("open the store", store.status());
  auto server = Server::Start(**store, config.server);
  if (!server.ok()) {
    const int code = Fail("start the server", server.status());
    // Nothing was served, but what the store has recovered must be closed in order.
    (void)(*store)->Close(config.flush_timeout);
    return code;
  }
  const StoreStatus status = (*store)->GetStatus();
  spdlog::info("host tier: {}", status.host.description);
  spdlog::info("disk tier: {}", status.disk.description);
  for (const std::string& warning : status.warnings) spdlog::warn("{}", warning);
  spdlog::info("ready: {} sessions, {} chunks, socket {}", status.session_count, status.chunk_count,
               config.server.socket_path);
  const int signal = signals.Wait();
  spdlog::info("{}: stopping", ::strsignal(signal));
  std::thread([&signals] {
    signals.Wait();
    spdlog::warn("second signal: exit at once");
    spdlog::default_logger()->flush();
    ::_exit(kInterrupted);
  }).detach();
  return Stop(**store, *std::move(server), config);
}

int Main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Keeps the KV cache of LLM sessions between turns.", "turnkeepd");
  app.set_version_flag("--version", std::string("turnkeepd ") + TURNKEEP_VERSION);
  app.footer(ExitCodesHelp());
  AddFlags(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kBadConfig;
  }
  auto config = LoadConfig(arguments.sources);
  if (const absl::Status policy = config.ok() ? CheckPolicy(*config) : absl::OkStatus();
      !policy.ok()) {
    config = policy;
  }
  if (!config.ok()) {
    std::fprintf(stderr, "turnkeepd: %s\n", MessageOf(config.status()).c_str());
    return kBadConfig;
  }
  if (arguments.print_config) {
    std::fputs(ConfigToToml(*config).c_str(), stdout);
    return kOk;
  }
  if (arguments.check_config) {
    std::puts("the configuration is right");
    return kOk;
  }
  const StopSignals signals;
  if (const absl::Status status = StartLog(*config); !status.ok()) {
    std::fprintf(stderr, "turnkeepd: %s\n", MessageOf(status).c_str());
    return kBadConfig;
  }
  RaiseFileLimit();
  const int code = Run(*config, signals);
  spdlog::default_logger()->flush();
  return code;
}

}  // namespace
}  // namespace turnkeep

int main(int argc, char** argv) {
  // Debian's Abseil checks the order of locks whenever one is taken; the tests leave that on.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return turnkeep::Main(argc, argv);
}
