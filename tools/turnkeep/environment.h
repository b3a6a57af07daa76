// What the command meets outside itself: streams, the daemon, time. main.cc makes the real
// one; tests make their own and run every command in-process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/clock.h"
#include "core/kv_store.h"
#include "table.h"

namespace turnkeep {

// The global options, as given.
struct GlobalOptions {
  std::string socket;
  std::string dir;
  std::string tcp;
  std::string timeout_text = "30s";
  absl::Duration timeout = absl::Seconds(30);
  bool json = false;
};

// An open connection. The store is owned by whoever made the connection's `owner`.
struct Connection {
  std::unique_ptr<KvStore> owner;
  KvStore* store = nullptr;
  // Of the daemon; empty for a store in this process.
  std::string address;
  std::string tenant;
  std::string transport;  // "shared memory" or "frames"
};

struct Environment {
  // False when nobody reads any more (a closed pipe); the command then ends quietly.
  std::function<bool(std::string_view)> write_out;
  std::function<void(std::string_view)> write_err;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  bool colour = false;
  std::function<absl::StatusOr<Connection>(const GlobalOptions&)> connect;
  Clock* clock = Clock::System();
  // Returns early, with true, when the user wants to stop.
  std::function<bool(absl::Duration)> sleep;

  Style style() const { return colour && out_is_terminal ? Style::Terminal() : Style::Plain(); }
};

}  // namespace turnkeep
