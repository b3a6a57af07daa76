// Sizes and durations as people write them in configurations and flags.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <absl/status/statusor.h>
#include <absl/time/time.h>

namespace turnkeep {

// "4GiB", "64 MiB", "100MB", "4096": a whole number with B, KiB, MiB, GiB, TiB (powers of
// 1024) or KB, MB, GB, TB (of 1000). InvalidArgument gives the text.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text);
// The largest binary unit that divides it: "4GiB", "100000000".
std::string BytesText(uint64_t bytes);

// "30s", "500ms", "10us", "2m", "1h", "7d", or "never" for infinite.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);
std::string DurationText(absl::Duration duration);

}  // namespace turnkeep
