#include "each_line.h"

#include <charconv>
#include <cmath>

#include "core/status.h"
#include "line_reader.h"

namespace turnkeep::replay {

absl::Status EachLine(const std::string& path, bool skip_bad, TraceBuilder* builder,
                      const std::function<absl::Status(const std::string& line)>& read) {
  auto lines = LineReader::Open(path);
  if (!lines.ok()) return lines.status();
  std::string line;
  while (true) {
    TK_ASSIGN_OR_RETURN(const bool more, (*lines)->Next(&line));
    if (!more) return absl::OkStatus();
    if (line.empty()) continue;
    const absl::Status status = read(line);
    if (status.ok()) continue;
    if (!skip_bad || !absl::IsInvalidArgument(status)) return (*lines)->Error(MessageOf(status));
    builder->CountBadLine();
  }
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

absl::StatusOr<uint64_t> ParseCount(std::string_view text, std::string_view what, uint64_t max) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > max) {
    return InvalidArgument("{} \"{}\" is no whole number from 0 to {}", what, text, max);
  }
  return value;
}

absl::StatusOr<double> ParseNonNegative(std::string_view text, std::string_view what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) ||
      value < 0) {
    return InvalidArgument("{} \"{}\" is no number from 0", what, text);
  }
  return value;
}

}  // namespace turnkeep::replay
