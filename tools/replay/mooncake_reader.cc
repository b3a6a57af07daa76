#include "core/status.h"
#include "each_line.h"
#include "json_fields.h"
#include "readers.h"

namespace turnkeep::replay {
namespace {

constexpr uint32_t kBlockTokens = 512;
constexpr double kMaxTimestampMs = 1e15;

class MooncakeLines {
 public:
  explicit MooncakeLines(TraceBuilder* builder) : builder_(builder) {}

  absl::Status Read(const std::string& line) {
    TK_ASSIGN_OR_RETURN(const nlohmann::json json, ParseObject(line));
    TraceRequest request;
    TK_ASSIGN_OR_RETURN(const double timestamp_ms, NumberField(json, "timestamp", -1));
    if (timestamp_ms > kMaxTimestampMs) return InvalidArgument("\"timestamp\" is past 1e15 ms");
    TK_ASSIGN_OR_RETURN(const uint64_t input, CountField(json, "input_length", kMaxTokens));
    TK_ASSIGN_OR_RETURN(const uint64_t output, CountField(json, "output_length", kMaxTokens));
    TK_ASSIGN_OR_RETURN(const nlohmann::json* ids, ArrayField(json, "hash_ids"));
    if (ids->size() > (input + kBlockTokens - 1) / kBlockTokens) {
      return InvalidArgument("{} \"hash_ids\" for {} tokens", ids->size(), input);
    }
    std::vector<TraceBuilder::SourceRun> runs;
    for (const auto& id : *ids) {
      if (!id.is_number_unsigned()) return InvalidArgument("\"hash_ids\" has something else");
      const uint64_t value = id.get<uint64_t>();
      if (!runs.empty() && runs.back().first + runs.back().count == value) {
        ++runs.back().count;
      } else {
        runs.push_back({value, 1});
      }
    }
    request.time_s = timestamp_ms / 1000;
    request.input_tokens = static_cast<uint32_t>(input);
    request.output_tokens = static_cast<uint32_t>(output);
    request.session = SessionOf(runs);
    return builder_->Add(request, runs);
  }

 private:
  // The session that last used the deepest known block; the first block of a prompt is
  // everybody's (a system prompt) and tells nothing.
  uint32_t SessionOf(const std::vector<TraceBuilder::SourceRun>& runs) {
    std::vector<uint64_t> ids;
    for (const auto& run : runs) {
      for (uint64_t i = 0; i < run.count; ++i) ids.push_back(run.first + i);
    }
    uint32_t session = kNone;
    for (size_t i = ids.size(); i-- > 1 && session == kNone;) {
      const auto found = session_of_.find(ids[i]);
      if (found != session_of_.end()) session = found->second;
    }
    if (session == kNone) session = builder_->NewSession();
    for (size_t i = 1; i < ids.size(); ++i) session_of_[ids[i]] = session;
    return session;
  }

  TraceBuilder* const builder_;
  absl::flat_hash_map<uint64_t, uint32_t> session_of_;
};

}  // namespace

absl::StatusOr<Trace> ReadMooncake(const std::string& path, const ReadOptions& options) {
  TraceBuilder builder(path, kBlockTokens);
  MooncakeLines lines(&builder);
  TK_RETURN_IF_ERROR(EachLine(path, options.skip_bad, &builder,
                              [&](const std::string& line) { return lines.Read(line); }));
  return std::move(builder).Finish();
}

}  // namespace turnkeep::replay
