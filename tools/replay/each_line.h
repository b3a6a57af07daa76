// What the readers share: going through a file's lines, and checked numbers.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "trace.h"

namespace turnkeep::replay {

inline constexpr uint64_t kMaxTokens = uint64_t{1} << 30;  // of one prompt or answer

// Calls `read` with every line that is not empty. What it refuses ends the reading with
// "path:line: what", or with skip_bad is counted in `builder` and left out.
absl::Status EachLine(const std::string& path, bool skip_bad, TraceBuilder* builder,
                      const std::function<absl::Status(const std::string& line)>& read);

std::vector<std::string_view> Split(std::string_view text, char separator);
// The whole of `text` as a number of at most `max`.
absl::StatusOr<uint64_t> ParseCount(std::string_view text, std::string_view what, uint64_t max);
// … as a finite number that is not negative.
absl::StatusOr<double> ParseNonNegative(std::string_view text, std::string_view what);

}  // namespace turnkeep::replay
