// One run of the command: the connection, opened when first needed, and the output,
// written in one piece at the end (or by Flush).
//
// Not thread-safe.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

#include "core/kv_store.h"
#include "environment.h"
#include "exit_code.h"
#include "json_output.h"

namespace turnkeep {

class Invocation {
 public:
  Invocation(Environment& environment, const GlobalOptions& global)
      : environment_(environment), global_(global) {}

  Environment& environment() { return environment_; }
  Style style() const { return environment_.style(); }
  bool json() const { return global_.json; }
  absl::Duration timeout() const { return global_.timeout; }
  int64_t now_unix_s() const { return environment_.clock->UnixSeconds(); }

  // Connects at the first call. The store lives as long as the invocation.
  absl::StatusOr<KvStore*> store();
  // Only after store() has succeeded.
  const Connection& connection() const { return *connection_; }

  template <typename... Args>
  void Print(fmt::format_string<Args...> format, Args&&... args) {
    out_ += fmt::format(format, std::forward<Args>(args)...);
  }
  void Write(std::string_view text) { out_ += text; }
  void WriteJson(const Json& json) { out_ += Dump(json); }
  // False when nobody reads any more.
  bool Flush();

  // "turnkeep: what" on standard error.
  void Complain(std::string_view what);
  // Complains and gives the exit code.
  ExitCode Fail(const absl::Status& status);

 private:
  Environment& environment_;
  const GlobalOptions& global_;
  std::optional<Connection> connection_;
  std::string out_;
};

// What a command does once the command line has been read.
using CommandBody = std::function<absl::StatusOr<ExitCode>(Invocation&)>;

}  // namespace turnkeep
