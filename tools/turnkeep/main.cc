// turnkeep: the command line of Turnkeep.
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include <absl/synchronization/mutex.h>

#include "commands.h"
#include "connect.h"

namespace turnkeep {
namespace {

std::atomic<bool> stop_asked = false;

// False on a closed pipe. A full disk must not pass for success.
bool WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EPIPE) return false;
    if (count < 0) {
      std::fprintf(stderr, "turnkeep: standard output: %s\n", std::strerror(errno));
      std::_Exit(static_cast<int>(ExitCode::kInternal));
    }
    text.remove_prefix(static_cast<size_t>(count));
  }
  return true;
}

// Sleeps until the time is over or the user interrupts.
bool SleepUnlessStopped(absl::Duration duration) {
  timespec rest = absl::ToTimespec(duration);
  while (!stop_asked.load() && nanosleep(&rest, &rest) != 0 && errno == EINTR) {
  }
  return stop_asked.load();
}

Environment RealEnvironment() {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != '\0';
  };
  Environment environment;
  environment.write_out = [](std::string_view text) { return WriteAll(STDOUT_FILENO, text); };
  environment.write_err = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
  };
  environment.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  environment.err_is_terminal = isatty(STDERR_FILENO) == 1;
  environment.colour = !set("NO_COLOR");
  environment.connect = ConnectToDaemon;
  environment.sleep = SleepUnlessStopped;
  return environment;
}

// `top` ends on the first interrupt with its last lines on the screen; everything else, and a
// second interrupt, ends at once.
void OnInterrupt(int signal) {
  if (stop_asked.exchange(true)) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

}  // namespace
}  // namespace turnkeep

int main(int argc, char** argv) {
  // Debian's Abseil checks the order of locks whenever one is taken; the tests leave that on.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  std::signal(SIGPIPE, SIG_IGN);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  turnkeep::Environment environment = turnkeep::RealEnvironment();
  for (const std::string& argument : arguments) {
    if (argument != "top") continue;
    struct sigaction action {};
    action.sa_handler = turnkeep::OnInterrupt;  // without SA_RESTART: ends the sleep
    sigaction(SIGINT, &action, nullptr);
  }
  return turnkeep::RunCommandLine(arguments, environment);
}
