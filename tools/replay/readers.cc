#include "readers.h"

#include "core/status.h"
#include "line_reader.h"

namespace turnkeep::replay {
namespace {

absl::StatusOr<std::string> Detect(const std::string& path) {
  TK_ASSIGN_OR_RETURN(const auto lines, LineReader::Open(path));
  std::string line;
  while (true) {
    TK_ASSIGN_OR_RETURN(const bool more, lines->Next(&line));
    if (!more) return InvalidArgument("{}: the file is empty", path);
    if (!line.empty()) break;
  }
  if (line.starts_with("{") && line.find("\"hash_ids\"") != std::string::npos) return "mooncake";
  if (line.starts_with("{") && line.find("\"requests\"") != std::string::npos) return "agent";
  if (line.starts_with("TIMESTAMP,")) return "azure";
  if (line.starts_with("#") || line.starts_with("time_s,")) return "csv";
  return InvalidArgument("{}: its first line is of no known format; say --format", path);
}

}  // namespace

absl::StatusOr<Trace> ReadTrace(const std::string& path, const std::string& format,
                                const ReadOptions& options) {
  std::string name = format;
  if (name == "auto") {
    TK_ASSIGN_OR_RETURN(name, Detect(path));
  }
  absl::StatusOr<Trace> trace = InvalidArgument(
      "format \"{}\" does not exist; there are: auto, mooncake, agent, azure, csv", name);
  if (name == "mooncake") trace = ReadMooncake(path, options);
  if (name == "agent") trace = ReadAgent(path, options);
  if (name == "azure") trace = ReadAzure(path, options);
  if (name == "csv") trace = ReadCsv(path, options);
  if (trace.ok() && trace->requests.empty()) return InvalidArgument("{}: no requests", path);
  return trace;
}

}  // namespace turnkeep::replay
