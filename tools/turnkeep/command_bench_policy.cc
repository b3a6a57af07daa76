// turnkeep bench policy: what eviction policies cost.
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "policy_bench.h"

namespace turnkeep {
namespace {

absl::StatusOr<ExitCode> RunBenchPolicy(Invocation& invocation,
                                        const bench::PolicyBenchOptions& options) {
  if (options.chunks < 1000 || options.chunks > 100'000'000)
    return InvalidArgument("--chunks: {} is outside 1000..100000000", options.chunks);
  if (options.decisions == 0) return InvalidArgument("--decisions must not be 0");
  TK_ASSIGN_OR_RETURN(const std::vector<bench::PolicyRow> rows, bench::MeasurePolicies(options));
  if (invocation.json()) {
    Json json = {{"rows", Json::array()}};
    for (const bench::PolicyRow& row : rows) {
      json["rows"].push_back({{"policy", row.policy},
                              {"chunks", options.chunks},
                              {"bytes_per_chunk", row.bytes_per_chunk},
                              {"decision_ns", row.decision_ns},
                              {"decision_ns_p50", row.decision_ns_p50},
                              {"decision_ns_p99", row.decision_ns_p99},
                              {"placement_bytes_per_chunk", row.placement_bytes_per_chunk},
                              {"placement_ns", row.placement_ns},
                              {"placement_ns_p50", row.placement_ns_p50},
                              {"placement_ns_p99", row.placement_ns_p99}});
    }
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Table table({{"POLICY"},
               {"BYTES A CHUNK", Align::kRight},
               {"DECISION ns", Align::kRight},
               {"p50", Align::kRight},
               {"p99", Align::kRight},
               {"PLACEMENT ns", Align::kRight},
               {"p50", Align::kRight},
               {"p99", Align::kRight},
               {"BYTES A CHUNK", Align::kRight}});
  for (const bench::PolicyRow& row : rows) {
    table.AddRow(
        {row.policy, fmt::format("{:.1f}", row.bytes_per_chunk),
         fmt::format("{:.0f}", row.decision_ns), fmt::format("{:.0f}", row.decision_ns_p50),
         fmt::format("{:.0f}", row.decision_ns_p99), fmt::format("{:.0f}", row.placement_ns),
         fmt::format("{:.0f}", row.placement_ns_p50), fmt::format("{:.0f}", row.placement_ns_p99),
         fmt::format("{:.1f}", row.placement_bytes_per_chunk)});
  }
  invocation.Write(table.Render(invocation.style()));
  return ExitCode::kOk;
}

}  // namespace

void AddBenchPolicyCommand(CommandLine& line, CLI::App* group) {
  CLI::App* command =
      line.AddTo(group, "policy", "Memory a chunk and time a decision of every eviction policy.",
                 {"turnkeep bench policy", "turnkeep bench policy --chunks 10000000 --json"});
  const auto options = std::make_shared<bench::PolicyBenchOptions>();
  command->add_option("--chunks", options->chunks, "In the tier")->capture_default_str();
  command->add_option("--decisions", options->decisions, "That are timed, in batches of 100")
      ->capture_default_str();
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) { return RunBenchPolicy(invocation, *options); };
  });
}

}  // namespace turnkeep
