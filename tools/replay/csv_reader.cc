// The two CSV formats: arrivals of Azure's traces, and Turnkeep's own.
#include <cstdio>

#include "core/status.h"
#include "core/units.h"
#include "each_line.h"
#include "readers.h"

namespace turnkeep::replay {
namespace {

constexpr double kMaxSeconds = 1e12;

// Days from 1970-01-01 in the proleptic Gregorian calendar.
int64_t DaysOf(int64_t year, int64_t month, int64_t day) {
  year -= month <= 2 ? 1 : 0;
  const int64_t era = year / 400;
  const int64_t year_of_era = year - era * 400;
  const int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
         719468;
}

// "2023-11-16 18:15:46.6805900"
absl::StatusOr<double> ParseTimestamp(const std::string& text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, used = 0;
  if (std::sscanf(text.c_str(), "%4d-%2d-%2d%*1[ T]%2d:%2d:%n", &year, &month, &day, &hour, &minute,
                  &used) == 5 &&
      used > 0 && year >= 1970 && month >= 1 && month <= 12 && day >= 1 && day <= 31 && hour >= 0 &&
      hour < 24 && minute >= 0 && minute < 60) {
    std::string rest = text.substr(static_cast<size_t>(used));
    for (const char* zone : {"Z", "+00:00"}) {
      const std::string suffix = zone;
      if (rest.ends_with(suffix)) rest.resize(rest.size() - suffix.size());
    }
    const auto seconds = ParseNonNegative(rest, "seconds");
    if (seconds.ok() && *seconds < 61) {
      return double(DaysOf(year, month, day) * 86400 + hour * 3600 + minute * 60) + *seconds;
    }
  }
  return InvalidArgument("\"{}\" is no time like 2023-11-16 18:15:46.68", text);
}

struct AzureRow {
  double time_s = 0;
  TraceRequest request;
};

absl::StatusOr<AzureRow> ParseAzure(const std::string& line) {
  const auto cells = Split(line, ',');
  if (cells.size() != 3) return InvalidArgument("{} cells instead of 3", cells.size());
  AzureRow row;
  TK_ASSIGN_OR_RETURN(row.time_s, ParseTimestamp(std::string(cells[0])));
  TK_ASSIGN_OR_RETURN(const uint64_t input, ParseCount(cells[1], "ContextTokens", kMaxTokens));
  TK_ASSIGN_OR_RETURN(const uint64_t output, ParseCount(cells[2], "GeneratedTokens", kMaxTokens));
  row.request.input_tokens = static_cast<uint32_t>(input);
  row.request.output_tokens = static_cast<uint32_t>(output);
  return row;
}

bool IsAzureHead(const std::string& line) { return line.starts_with("TIMESTAMP,"); }

class CsvLines {
 public:
  CsvLines(TraceBuilder* builder, uint32_t block_tokens)
      : builder_(builder), block_tokens_(block_tokens) {}

  uint32_t block_tokens() const { return block_tokens_; }

  absl::Status Read(const std::string& line) {
    if (line.starts_with("#")) return ReadComment(line);
    if (line.starts_with("time_s,")) return absl::OkStatus();
    const auto cells = Split(line, ',');
    if (cells.size() != 6) return InvalidArgument("{} cells instead of 6", cells.size());
    TraceRequest request;
    TK_ASSIGN_OR_RETURN(request.time_s, ParseNonNegative(cells[0], "time_s"));
    if (request.time_s > kMaxSeconds) return InvalidArgument("time_s is past 1e12");
    TK_ASSIGN_OR_RETURN(const uint64_t input, ParseCount(cells[2], "input_tokens", kMaxTokens));
    TK_ASSIGN_OR_RETURN(const uint64_t output, ParseCount(cells[3], "output_tokens", kMaxTokens));
    request.input_tokens = static_cast<uint32_t>(input);
    request.output_tokens = static_cast<uint32_t>(output);
    request.stop = ParseStopReason(std::string(cells[4]));
    TK_ASSIGN_OR_RETURN(const auto runs, ParseRuns(cells[5], input));
    const auto [session, is_new] = sessions_.try_emplace(std::string(cells[1]), 0);
    if (is_new) session->second = builder_->NewSession();
    request.session = session->second;
    seen_request_ = true;
    return builder_->Add(request, runs);
  }

 private:
  absl::Status ReadComment(const std::string& line) {
    const std::string key = "block_tokens=";
    const size_t at = line.find(key);
    if (at == std::string::npos) return absl::OkStatus();
    TK_ASSIGN_OR_RETURN(
        const uint64_t value,
        ParseCount(std::string_view(line).substr(at + key.size()), "block_tokens", 1 << 20));
    if (value == 0) return InvalidArgument("block_tokens is 0");
    if (seen_request_) return InvalidArgument("block_tokens after the first request");
    block_tokens_ = static_cast<uint32_t>(value);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<TraceBuilder::SourceRun>> ParseRuns(std::string_view text,
                                                                 uint64_t input_tokens) {
    std::vector<TraceBuilder::SourceRun> runs;
    uint64_t total = 0;
    for (const std::string_view part : Split(text, ' ')) {
      if (part.empty()) continue;
      const auto ends = Split(part, '-');
      if (ends.size() > 2) return InvalidArgument("blocks \"{}\" is no run", part);
      TK_ASSIGN_OR_RETURN(const uint64_t first, ParseCount(ends[0], "block", UINT64_MAX - 1));
      TK_ASSIGN_OR_RETURN(const uint64_t last, ParseCount(ends.back(), "block", UINT64_MAX - 1));
      if (last < first) return InvalidArgument("blocks \"{}\" runs backwards", part);
      if (last - first > kMaxTokens) return InvalidArgument("blocks \"{}\" is too long", part);
      total += last - first + 1;
      runs.push_back({first, last - first + 1});
    }
    if (total > DivideRoundUp(input_tokens, block_tokens_)) {
      return InvalidArgument("{} blocks of {} for {} tokens", total, block_tokens_, input_tokens);
    }
    return runs;
  }

  TraceBuilder* const builder_;
  uint32_t block_tokens_;
  bool seen_request_ = false;
  absl::flat_hash_map<std::string, uint32_t> sessions_;
};

}  // namespace

absl::StatusOr<Trace> ReadAzure(const std::string& path, const ReadOptions& options) {
  TraceBuilder builder(path, options.default_block_tokens);
  double start_s = -1;
  TK_RETURN_IF_ERROR(EachLine(path, options.skip_bad, &builder, [&](const std::string& line) {
    if (IsAzureHead(line)) return absl::OkStatus();
    auto row = ParseAzure(line);
    if (!row.ok()) return row.status();
    if (start_s < 0) start_s = row->time_s;
    row->request.time_s = row->time_s - start_s;
    row->request.session = builder.NewSession();
    return builder.AddUnshared(row->request,
                               row->request.input_tokens / options.default_block_tokens);
  }));
  return std::move(builder).Finish();
}

absl::StatusOr<std::vector<double>> ReadArrivals(const std::string& path) {
  std::vector<double> arrivals;
  TraceBuilder unused(path, 1);
  TK_RETURN_IF_ERROR(
      EachLine(path, /*skip_bad=*/false, &unused, [&](const std::string& line) -> absl::Status {
        if (IsAzureHead(line)) return absl::OkStatus();
        TK_ASSIGN_OR_RETURN(const AzureRow row, ParseAzure(line));
        if (!arrivals.empty() && row.time_s < arrivals.back()) {
          return InvalidArgument("the time lies before the line above");
        }
        arrivals.push_back(row.time_s);
        return absl::OkStatus();
      }));
  for (size_t i = arrivals.size(); i-- > 0;) arrivals[i] -= arrivals[0];
  return arrivals;
}

absl::StatusOr<Trace> ReadCsv(const std::string& path, const ReadOptions& options) {
  TraceBuilder builder(path, 0);
  CsvLines lines(&builder, options.default_block_tokens);
  TK_RETURN_IF_ERROR(EachLine(path, options.skip_bad, &builder,
                              [&](const std::string& line) { return lines.Read(line); }));
  Trace trace = std::move(builder).Finish();
  trace.block_tokens = lines.block_tokens();
  return trace;
}

}  // namespace turnkeep::replay
