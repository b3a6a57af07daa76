// What the crash test's processes tell one another: a session's history as text, and the lines of
// the pipe.
//
// A history is a list of steps: "a7:40" appends 40 tokens of seed 7, "d5:20" drops tokens [5, 20).
// It determines the context with every byte of its KV. "-" stands for a session that is no more.
//
// Lines, each written whole by one write(2):
//   B <session> <history>   the change to this history is about to be asked for
//   A <session> <history>   it was acknowledged, and is durable
//   N <session> <history>   it was acknowledged with durable = false
//
// Thread-safe: pure functions.
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "testing/kv_pattern.h"

namespace turnkeep::testing {

inline constexpr std::string_view kGone = "-";

// nullopt when the text is no history.
inline std::optional<KvContext> ContextOfHistory(std::string_view history) {
  KvContext context;
  if (history == kGone) return context;
  while (!history.empty()) {
    const char kind = history.front();
    history.remove_prefix(1);
    uint64_t first = 0, second = 0;
    const char* end = history.data() + history.size();
    auto parsed = std::from_chars(history.data(), end, first);
    if (parsed.ec != std::errc() || parsed.ptr == end || *parsed.ptr != ':') return std::nullopt;
    parsed = std::from_chars(parsed.ptr + 1, end, second);
    if (parsed.ec != std::errc()) return std::nullopt;
    history.remove_prefix(static_cast<size_t>(parsed.ptr - history.data()));
    if (!history.empty() && history.front() == ',') history.remove_prefix(1);
    if (kind == 'a') {
      context.Append(MakeTokens(first, second));
    } else if (kind == 'd') {
      context.Drop(first, second);
    } else {
      return std::nullopt;
    }
  }
  return context;
}

inline std::string WithStep(const std::string& history, char kind, uint64_t first,
                            uint64_t second) {
  const std::string step = kind + std::to_string(first) + ":" + std::to_string(second);
  return history.empty() || history == kGone ? step : history + "," + step;
}

}  // namespace turnkeep::testing
