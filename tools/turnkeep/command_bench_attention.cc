// turnkeep bench attention: planners against each other, their floors and the oracle.
#include <algorithm>
#include <string>
#include <vector>

#include "attention_bench.h"
#include "commands.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "cuda_bench.h"
#include "human.h"
#include "progress.h"

namespace turnkeep {
namespace {

constexpr double kLimit = 0.98;  // times per_sequence, which auto is to reach for every shape

struct AttentionArguments {
  std::string shapes = "chunkattention";
  std::string planner = "all";
  std::string device = "cpu";
  std::string dtype;
  std::string trees = "../shared/traces";
  std::string filter;
  bool full = false;
  uint32_t threads = 2;
  uint32_t rounds = 7;
  uint64_t seed = 1;
};

Json ToJson(const bench::AttentionRow& row, const std::string& device) {
  Json json = {{"shape", row.shape},
               {"planner", row.planner},
               {"device", device},
               {"us", row.us},
               {"planning_us", row.planning_us},
               {"replan_us", row.replan_us},
               {"step_us", row.step_us},
               {"speedup", row.speedup},
               {"speedup_low", row.speedup_low},
               {"speedup_high", row.speedup_high},
               {"rounds", row.rounds},
               {"machine_bound", row.machine_bound},
               {"bytes_unique", row.bytes_unique},
               {"floor_us", row.floor_us},
               {"share", row.share},
               {"share_low", row.share_low},
               {"share_high", row.share_high},
               {"error", row.error}};
  if (row.traffic_bound > 0) {
    json["traffic_bound"] = row.traffic_bound;
    json["traffic_share"] = row.speedup / row.traffic_bound;
  }
  return json;
}

// Of the rows of `auto`, which must not be slower than per_sequence.
const bench::AttentionRow* WorstOfAuto(const bench::AttentionBenchResult& result) {
  const bench::AttentionRow* worst = nullptr;
  for (const bench::AttentionRow& row : result.rows)
    if (row.planner == "auto" && (worst == nullptr || row.speedup < worst->speedup)) worst = &row;
  return worst;
}

void Print(const bench::AttentionBenchResult& result, const std::string& note,
           Invocation& invocation) {
  Table table({{"SHAPE"},
               {"PLANNER"},
               {"us", Align::kRight},
               {"PLAN us", Align::kRight},
               {"JOIN us", Align::kRight},
               {"STEP us", Align::kRight},
               {"SPEEDUP", Align::kRight},
               {"95%", Align::kRight},
               {"AT MOST", Align::kRight},
               {"UNIQUE KV", Align::kRight},
               {"FLOOR us", Align::kRight},
               {"SHARE", Align::kRight},
               {"ERROR", Align::kRight}});
  for (const bench::AttentionRow& row : result.rows) {
    table.AddRow({row.shape, row.planner, fmt::format("{:.0f}", row.us),
                  fmt::format("{:.1f}", row.planning_us), fmt::format("{:.1f}", row.replan_us),
                  fmt::format("{:.1f}", row.step_us), fmt::format("{:.2f}", row.speedup),
                  fmt::format("{:.2f}-{:.2f}", row.speedup_low, row.speedup_high),
                  fmt::format("{:.1f}", row.machine_bound), HumanBytes(row.bytes_unique),
                  fmt::format("{:.0f}", row.floor_us), fmt::format("{:.2f}", row.share),
                  fmt::format("{:.1e}", row.error)});
  }
  invocation.Write(table.Render(invocation.style()));
  invocation.Print(
      "{}, {}; ceilings of this run: {}/s read, {:.0f} GFLOP/s. Speed-up is over per_sequence, "
      "planning from\nnothing (PLAN) included; JOIN is planning after one sequence joined or left, "
      "STEP after a decode step.\nEvery call reads another copy of the KV, so that no cache holds "
      "it. Scaled to a CPU: {}.\n",
      result.device, result.target, HumanBytes(static_cast<uint64_t>(result.read_bytes_per_s)),
      result.operations_per_s * 1e-9, note);
  if (!result.left_out.empty()) invocation.Print("Left out: {}.\n", result.left_out);
  if (const bench::AttentionRow* worst = WorstOfAuto(result); worst != nullptr)
    invocation.Print("Where auto gains least: {}, {:.3f}.\n", worst->shape, worst->speedup);
  const bench::AutoVerdict verdict = bench::JudgeAuto(result.rows, kLimit);
  if (verdict.shapes > 0) {
    invocation.Print(
        "Of {} shapes auto is slower than {} times per_sequence in {}, maybe in {} more.\n",
        verdict.shapes, kLimit, verdict.slower, verdict.undecided);
  }
}

absl::StatusOr<ExitCode> RunBenchAttention(Invocation& invocation,
                                           const AttentionArguments& arguments) {
  const bool cuda = arguments.device == "cuda";
  if (cuda) TK_RETURN_IF_ERROR(bench::CudaIsThere());
  if (arguments.threads == 0 || arguments.threads > kMaxThreads)
    return InvalidArgument("--threads: {} is outside 1..{}", arguments.threads, kMaxThreads);
  if (arguments.rounds == 0) return InvalidArgument("--rounds must not be 0");
  bench::AttentionBenchOptions options;
  for (const std::string_view name : AttentionPlannerNames())
    if (arguments.planner == "all" || arguments.planner == name)
      options.planners.emplace_back(name);
  options.threads = arguments.threads;
  options.rounds = arguments.rounds;
  options.most_rounds = 15 * arguments.rounds;
  options.second_look_rounds = 200 * arguments.rounds;
  options.limit = kLimit;
  options.seed = arguments.seed;
  TK_ASSIGN_OR_RETURN(bench::AttentionShapeSet set,
                      bench::MakeAttentionShapes({.set = arguments.shapes,
                                                  .trees = arguments.trees,
                                                  .filter = arguments.filter,
                                                  .seed = arguments.seed,
                                                  .full = arguments.full}));
  for (bench::AttentionCaseSpec& spec : set.cases) {
    if (arguments.dtype.empty()) break;
    spec.dtype = arguments.dtype == "float32"    ? DType::kFloat32
                 : arguments.dtype == "bfloat16" ? DType::kBFloat16
                                                 : DType::kFloat16;
  }
  Progress bar(invocation.environment(), "shapes");
  options.progress = [&](const std::string&, uint64_t done, uint64_t total) {
    bar.Update(done, total);
  };
  TK_ASSIGN_OR_RETURN(const bench::AttentionBenchResult result,
                      cuda ? bench::MeasureAttentionOnCuda(options, set.cases)
                           : bench::MeasureAttention(options, set.cases));
  if (!invocation.json()) {
    Print(result, set.note, invocation);
    return ExitCode::kOk;
  }
  Json json = {{"shapes", arguments.shapes},
               {"scaled", set.note},
               {"target", result.target},
               {"left_out", result.left_out},
               {"threads", arguments.threads},
               {"read_bytes_per_s", result.read_bytes_per_s},
               {"operations_per_s", result.operations_per_s},
               {"rows", Json::array()}};
  for (const bench::AttentionRow& row : result.rows)
    json["rows"].push_back(ToJson(row, result.device));
  if (const bench::AttentionRow* worst = WorstOfAuto(result); worst != nullptr)
    json["auto_worst"] = {{"shape", worst->shape}, {"speedup", worst->speedup}};
  const bench::AutoVerdict verdict = bench::JudgeAuto(result.rows, kLimit);
  json["auto_verdict"] = {{"limit", kLimit},
                          {"shapes", verdict.shapes},
                          {"slower", verdict.slower},
                          {"undecided", verdict.undecided}};
  invocation.WriteJson(json);
  return ExitCode::kOk;
}

}  // namespace

void AddBenchAttentionCommand(CommandLine& line, CLI::App* group) {
  CLI::App* command = line.AddTo(
      group, "attention",
      "Time, planning time and error of attention planners on a set of shapes, each row with its\n"
      "floor from the bandwidth and the arithmetic rate measured in the same run.",
      {"turnkeep bench attention", "turnkeep bench attention --shapes relay --planner auto --json",
       "turnkeep bench attention --shapes deft --trees ../shared/traces"});
  const auto arguments = std::make_shared<AttentionArguments>();
  std::vector<std::string> planners = {"all"};
  for (const std::string_view name : AttentionPlannerNames()) planners.emplace_back(name);
  command->add_option("--shapes", arguments->shapes, "Set of shapes")
      ->check(CLI::IsMember(bench::AttentionShapeSetNames()))
      ->capture_default_str();
  command->add_option("--planner", arguments->planner, "One planner, or all")
      ->check(CLI::IsMember(planners))
      ->capture_default_str();
  command->add_option("--device", arguments->device, "Where the plans run")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--dtype", arguments->dtype, "Of queries and KV, instead of the shapes' own")
      ->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
  command->add_option("--filter", arguments->filter, "Only shapes whose names contain this");
  command->add_flag("--full", arguments->full,
                    "As many heads as the papers' models have; takes minutes");
  command->add_option("--trees", arguments->trees, "Folder with deft_*.json.gz, if there is one")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "Threads")->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Medians are over these or more")
      ->capture_default_str();
  command->add_option("--seed", arguments->seed, "Of the random set and the KV")
      ->capture_default_str();
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) {
      return RunBenchAttention(invocation, *arguments);
    };
  });
}

}  // namespace turnkeep
