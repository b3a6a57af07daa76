// turnkeep bench gather: moving KV between paged layouts and chunk pages, against a copy.
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "core/units.h"
#include "cuda_bench.h"
#include "gather_bench.h"
#include "human.h"
#include "progress.h"

namespace turnkeep {
namespace {

struct GatherArguments {
  std::string device = "cpu";
  uint64_t mebibytes = 64;
  uint32_t rounds = 7;
};

Json ToJson(const bench::GatherRow& row, const std::string& device) {
  return {{"layout", row.layout},
          {"page_tokens", row.page_tokens},
          {"chunk_page_bytes", row.chunk_page_bytes},
          {"device", device},
          {"gather_bytes_per_s", row.gather_bytes_per_s},
          {"scatter_bytes_per_s", row.scatter_bytes_per_s},
          {"rotated_scatter_bytes_per_s", row.rotated_bytes_per_s},
          {"copy_bytes_per_s", row.copy_bytes_per_s},
          {"gather_share", row.gather_bytes_per_s / row.copy_bytes_per_s},
          {"scatter_share", row.scatter_bytes_per_s / row.copy_bytes_per_s}};
}

absl::StatusOr<ExitCode> RunBenchGather(Invocation& invocation, const GatherArguments& arguments) {
  if (arguments.mebibytes < 1 || arguments.mebibytes > 4096)
    return InvalidArgument("--mebibytes: {} is outside 1..4096", arguments.mebibytes);
  if (arguments.rounds == 0) return InvalidArgument("--rounds must not be 0");
  const bool cuda = arguments.device == "cuda";
  if (cuda) TK_RETURN_IF_ERROR(bench::CudaIsThere());
  Progress bar(invocation.environment(), "layouts");
  bench::GatherBenchOptions options{.bytes = arguments.mebibytes * kMiB,
                                    .rounds = arguments.rounds};
  options.progress = [&](const std::string&, uint64_t done, uint64_t total) {
    bar.Update(done, total);
  };
  TK_ASSIGN_OR_RETURN(const std::vector<bench::GatherRow> rows,
                      cuda ? bench::MeasureGatherOnCuda(options) : bench::MeasureGather(options));
  if (invocation.json()) {
    Json json = {{"rows", Json::array()}};
    for (const bench::GatherRow& row : rows) json["rows"].push_back(ToJson(row, arguments.device));
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Table table({{"LAYOUT"},
               {"PAGE", Align::kRight},
               {"CHUNK PAGE", Align::kRight},
               {"GATHER", Align::kRight},
               {"SHARE", Align::kRight},
               {"SCATTER", Align::kRight},
               {"SHARE", Align::kRight},
               {"KEYS ROTATED", Align::kRight},
               {"COPY", Align::kRight}});
  const auto rate = [](double bytes_per_s) {
    return bytes_per_s == 0 ? "-" : HumanBytes(static_cast<uint64_t>(bytes_per_s)) + "/s";
  };
  for (const bench::GatherRow& row : rows) {
    table.AddRow({row.layout, std::to_string(row.page_tokens), HumanBytes(row.chunk_page_bytes),
                  rate(row.gather_bytes_per_s),
                  fmt::format("{:.2f}", row.gather_bytes_per_s / row.copy_bytes_per_s),
                  rate(row.scatter_bytes_per_s),
                  fmt::format("{:.2f}", row.scatter_bytes_per_s / row.copy_bytes_per_s),
                  rate(row.rotated_bytes_per_s), rate(row.copy_bytes_per_s)});
  }
  invocation.Write(table.Render(invocation.style()));
  invocation.Write(
      cuda ? "CUDA, bfloat16; shares are of a copy on the device of the same bytes in the same "
             "run.\n"
           : "One thread, bfloat16; shares are of memcpy of the same bytes in the same run.\n");
  return ExitCode::kOk;
}

}  // namespace

void AddBenchGatherCommand(CommandLine& line, CLI::App* group) {
  CLI::App* command = line.AddTo(
      group, "gather",
      "Rates of gather and scatter between paged layouts and chunk pages, and of scatter with a\n"
      "rotation of the keys, against a copy of the same bytes.",
      {"turnkeep bench gather", "turnkeep bench gather --mebibytes 256 --json",
       "turnkeep bench gather --device cuda"});
  const auto arguments = std::make_shared<GatherArguments>();
  command->add_option("--device", arguments->device, "Whose memory the KV is moved in")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--mebibytes", arguments->mebibytes, "KV moved per round")
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Medians are over these")
      ->capture_default_str();
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) {
      return RunBenchGather(invocation, *arguments);
    };
  });
}

}  // namespace turnkeep
