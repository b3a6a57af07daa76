// Runs the command in-process against a MemoryKvStore and keeps what it wrote.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "core/status.h"
#include "testing/memory_kv_store.h"

namespace turnkeep::testing {

struct Ran {
  int code = -1;
  std::string out;
  std::string err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

class CommandFixture : public ::testing::Test {
 protected:
  CommandFixture() {
    layout_ = *store_.RegisterLayout(SmallLayout());
    environment_.write_out = [this](std::string_view text) {
      ran_.out += text;
      return !pipe_closed_;
    };
    environment_.write_err = [this](std::string_view text) { ran_.err += text; };
    environment_.clock = &clock_;
    environment_.sleep = [this](absl::Duration duration) {
      clock_.AdvanceNs(absl::ToInt64Nanoseconds(duration));
      ++sleeps_;
      if (on_sleep_) on_sleep_();
      return false;
    };
    environment_.connect = [this](const GlobalOptions& global) -> absl::StatusOr<Connection> {
      connected_with_ = global;
      if (!connect_status_.ok()) return connect_status_;
      return Connection{.store = &store_,
                        .address = "/run/tk.sock",
                        .tenant = "default",
                        .transport = "shared memory"};
    };
  }

  Ran Run(const std::vector<std::string>& arguments) {
    ran_ = {};
    ran_.code = RunCommandLine(arguments, environment_);
    return ran_;
  }

  // `count` tokens: 0, 1, 2, …
  void Save(const std::string& session, uint32_t count, uint64_t generation = 0) {
    std::vector<uint32_t> tokens(count);
    for (uint32_t i = 0; i < count; ++i) tokens[i] = i;
    const auto saved = SaveTokens(store_, session, layout_, tokens, generation);
    ASSERT_TRUE(saved.ok()) << saved.status();
  }

  MemoryKvStore store_;
  Fingerprint layout_;
  ManualClock clock_;
  Environment environment_;
  GlobalOptions connected_with_;
  absl::Status connect_status_;
  std::function<void()> on_sleep_;
  int sleeps_ = 0;
  bool pipe_closed_ = false;
  Ran ran_;
};

}  // namespace turnkeep::testing
