#include <algorithm>
#include <cmath>
#include <queue>
#include <random>

#include "core/status.h"
#include "each_line.h"
#include "json_fields.h"
#include "readers.h"

namespace turnkeep::replay {
namespace {

constexpr double kMaxSessionSeconds = 1e9;
constexpr int kMaxNesting = 8;

// One request as read, before the session is known to be whole.
struct Parsed {
  TraceRequest request;  // time_s from the session's start; session: index in the line
  std::vector<TraceBuilder::SourceRun> runs;
};

class AgentLines {
 public:
  AgentLines(TraceBuilder* builder, const SessionStarts& starts, std::vector<double> arrivals,
             uint64_t seed)
      : builder_(builder), starts_(starts), arrivals_(std::move(arrivals)), random_(seed) {}

  uint32_t block_tokens() const { return block_tokens_; }

  absl::Status Read(const std::string& line) {
    TK_ASSIGN_OR_RETURN(const nlohmann::json json, ParseObject(line));
    TK_ASSIGN_OR_RETURN(const uint64_t block, CountField(json, "block_size", 1 << 20));
    if (block == 0) return InvalidArgument("\"block_size\" is 0");
    if (block_tokens_ != 0 && block != block_tokens_) {
      return InvalidArgument("\"block_size\" {} after {}", block, block_tokens_);
    }
    parsed_.clear();
    session_count_ = 0;
    TK_RETURN_IF_ERROR(ReadRequests(json, /*start_s=*/0, static_cast<uint32_t>(block), 0));
    block_tokens_ = static_cast<uint32_t>(block);
    const bool global = json.value("hash_id_scope", std::string("local")) == "global";
    if (!global) builder_->BeginScope();
    const double start_s = NextStart();
    EndAt(start_s);
    std::vector<uint32_t> sessions;
    for (uint32_t i = 0; i < session_count_; ++i) sessions.push_back(builder_->NewSession());
    for (Parsed& parsed : parsed_) {
      parsed.request.time_s += start_s;
      parsed.request.session = sessions[parsed.request.session];
      TK_RETURN_IF_ERROR(builder_->Add(parsed.request, parsed.runs));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ReadRequests(const nlohmann::json& object, double start_s, uint32_t block,
                            int depth) {
    if (depth > kMaxNesting) return InvalidArgument("sub-agents nest deeper than {}", kMaxNesting);
    const uint32_t session = session_count_++;
    TK_ASSIGN_OR_RETURN(const nlohmann::json* requests, ArrayField(object, "requests"));
    for (size_t i = 0; i < requests->size(); ++i) {
      const nlohmann::json& entry = (*requests)[i];
      const absl::Status status = !entry.is_object() ? InvalidArgument("is no object")
                                  : entry.contains("requests")
                                      ? ReadSubAgent(entry, start_s, block, depth)
                                      : ReadRequest(entry, start_s, block, session);
      if (!status.ok()) return InvalidArgument("requests[{}]: {}", i, MessageOf(status));
    }
    return absl::OkStatus();
  }

  absl::Status ReadSubAgent(const nlohmann::json& entry, double start_s, uint32_t block,
                            int depth) {
    TK_ASSIGN_OR_RETURN(const double t, NumberField(entry, "t", -1));
    if (t > kMaxSessionSeconds) return InvalidArgument("\"t\" is past 1e9 s");
    return ReadRequests(entry, start_s + t, block, depth + 1);
  }

  absl::Status ReadRequest(const nlohmann::json& entry, double start_s, uint32_t block,
                           uint32_t session) {
    Parsed parsed;
    TK_ASSIGN_OR_RETURN(const double t, NumberField(entry, "t", -1));
    if (t > kMaxSessionSeconds) return InvalidArgument("\"t\" is past 1e9 s");
    TK_ASSIGN_OR_RETURN(const uint64_t input, CountField(entry, "in", kMaxTokens));
    TK_ASSIGN_OR_RETURN(const uint64_t output, CountField(entry, "out", kMaxTokens));
    TK_ASSIGN_OR_RETURN(parsed.request.service_s, NumberField(entry, "api_time", 0));
    TK_ASSIGN_OR_RETURN(const nlohmann::json* runs, ArrayField(entry, "hash_runs"));
    if (runs->size() % 2 != 0) return InvalidArgument("\"hash_runs\" has an odd length");
    uint64_t total = 0;
    for (size_t i = 0; i < runs->size(); i += 2) {
      if (!(*runs)[i].is_number_unsigned() || !(*runs)[i + 1].is_number_unsigned()) {
        return InvalidArgument("\"hash_runs\" has something else than whole numbers");
      }
      const uint64_t first = (*runs)[i].get<uint64_t>();
      const uint64_t count = (*runs)[i + 1].get<uint64_t>();
      total += count;
      if (count > kMaxTokens || total > (input + block - 1) / block || first + count < first) {
        return InvalidArgument("\"hash_runs\" has more blocks than {} tokens", input);
      }
      parsed.runs.push_back({first, count});
    }
    parsed.request.time_s = start_s + t;
    parsed.request.session = session;
    parsed.request.input_tokens = static_cast<uint32_t>(input);
    parsed.request.output_tokens = static_cast<uint32_t>(output);
    if (const auto stop = entry.find("stop"); stop != entry.end() && stop->is_string()) {
      parsed.request.stop = ParseStopReason(stop->get<std::string>());
    }
    parsed_.push_back(std::move(parsed));
    return absl::OkStatus();
  }

  // The user who began the session is free when its last answer has come.
  void EndAt(double start_s) {
    if (starts_.rule != SessionStarts::Rule::kUsers) return;
    double end_s = 0;
    for (const Parsed& parsed : parsed_) {
      end_s = std::max(end_s, parsed.request.time_s + parsed.request.service_s);
    }
    free_at_s_.push(start_s + end_s);
  }

  double NextStart() {
    if (starts_.rule == SessionStarts::Rule::kUsers) {
      if (line_count_++ < starts_.users) return 0;
      const double free_s = free_at_s_.top();
      free_at_s_.pop();
      return free_s;
    }
    const double at = next_start_s_;
    const size_t index = line_count_++;
    if (starts_.rule == SessionStarts::Rule::kFile) {
      // Past its end the file starts again, after its last arrival.
      const double length = arrivals_.back() + arrivals_.back() / double(arrivals_.size());
      return double(index / arrivals_.size()) * length + arrivals_[index % arrivals_.size()];
    }
    // By hand, since std's distributions differ between libraries.
    const double uniform = (double(random_() >> 11) + 0.5) * 0x1p-53;
    const bool every = starts_.rule == SessionStarts::Rule::kEvery;
    next_start_s_ += (every ? 1.0 : -std::log(uniform)) / starts_.per_second;
    return at;
  }

  TraceBuilder* const builder_;
  const SessionStarts starts_;
  const std::vector<double> arrivals_;
  std::mt19937_64 random_;
  double next_start_s_ = 0;
  std::priority_queue<double, std::vector<double>, std::greater<>> free_at_s_;
  size_t line_count_ = 0;
  uint32_t block_tokens_ = 0;
  std::vector<Parsed> parsed_;
  uint32_t session_count_ = 0;
};

}  // namespace

absl::StatusOr<Trace> ReadAgent(const std::string& path, const ReadOptions& options) {
  std::vector<double> arrivals;
  if (options.starts.rule == SessionStarts::Rule::kFile) {
    TK_ASSIGN_OR_RETURN(arrivals, ReadArrivals(options.starts.file));
    if (arrivals.empty()) return InvalidArgument("{}: no arrivals", options.starts.file);
  }
  TraceBuilder builder(path, 0);
  AgentLines lines(&builder, options.starts, std::move(arrivals), options.seed);
  TK_RETURN_IF_ERROR(EachLine(path, options.skip_bad, &builder,
                              [&](const std::string& line) { return lines.Read(line); }));
  Trace trace = std::move(builder).Finish();
  trace.block_tokens = lines.block_tokens();
  return trace;
}

}  // namespace turnkeep::replay
