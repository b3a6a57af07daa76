#include "api/quantities.h"

#include <charconv>
#include <limits>

#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};

constexpr Unit kByteUnits[] = {{"TiB", kGiB << 10},
                               {"GiB", kGiB},
                               {"MiB", kMiB},
                               {"KiB", kKiB},
                               {"B", 1},
                               {"", 1},
                               {"KB", 1'000},
                               {"MB", 1'000'000},
                               {"GB", 1'000'000'000},
                               {"TB", 1'000'000'000'000}};

constexpr Unit kTimeUnits[] = {{"d", 86'400'000'000}, {"h", 3'600'000'000}, {"m", 60'000'000},
                               {"s", 1'000'000},      {"ms", 1'000},        {"us", 1}};

template <size_t N>
bool ParseNumber(std::string_view text, const Unit (&units)[N], uint64_t* out) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop == text.data()) return false;
  while (stop != end && *stop == ' ') ++stop;
  const std::string_view suffix(stop, static_cast<size_t>(end - stop));
  for (const Unit& unit : units) {
    if (unit.name == suffix) return CheckedMultiply(number, unit.factor, out);
  }
  return false;
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text) {
  uint64_t bytes = 0;
  if (!ParseNumber(text, kByteUnits, &bytes)) {
    return InvalidArgument("'{}' is not a size such as 4096, 64MiB or 4GiB", text);
  }
  return bytes;
}

std::string BytesText(uint64_t bytes) {
  for (const Unit& unit : {kByteUnits[0], kByteUnits[1], kByteUnits[2], kByteUnits[3]}) {
    if (bytes != 0 && bytes % unit.factor == 0) {
      return fmt::format("{}{}", bytes / unit.factor, unit.name);
    }
  }
  return fmt::format("{}", bytes);
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  if (text == "never") return absl::InfiniteDuration();
  uint64_t micros = 0;
  if (!ParseNumber(text, kTimeUnits, &micros) ||
      micros > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return InvalidArgument("'{}' is not a duration such as 500ms, 30s, 2h, 7d or never", text);
  }
  return absl::Microseconds(static_cast<int64_t>(micros));
}

std::string DurationText(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return "never";
  const auto micros = static_cast<uint64_t>(absl::ToInt64Microseconds(duration));
  if (micros == 0) return "0s";
  for (const Unit& unit : kTimeUnits) {
    if (micros % unit.factor == 0) return fmt::format("{}{}", micros / unit.factor, unit.name);
  }
  return fmt::format("{}us", micros);
}

}  // namespace turnkeep
