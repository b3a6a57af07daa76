// turnkeep replay: a request trace through the store's placement on a virtual clock.
#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "core/units.h"
#include "human.h"
#include "plot.h"
#include "progress.h"
#include "replay.h"
#include "replay_rows.h"

namespace turnkeep {
namespace {

using replay::Metrics;
using replay::Options;
using replay::Ratio;
using replay::Result;

struct ReplayArguments {
  Options options;
  std::vector<std::string> sweeps;
  std::string plot;
  std::string real;  // a socket or an address; empty: virtual
};

// Every combination of the sweeps' values, the last sweep running fastest.
absl::Status Expand(const ReplayArguments& arguments, std::vector<Options>* runs,
                    std::vector<std::string>* labels) {
  constexpr size_t kMaxRuns = 10'000;
  *runs = {arguments.options};
  *labels = {""};
  for (const std::string& text : arguments.sweeps) {
    TK_ASSIGN_OR_RETURN(const replay::Sweep sweep, replay::ParseSweep(text));
    std::vector<Options> more;
    std::vector<std::string> more_labels;
    if (runs->size() * sweep.values.size() > kMaxRuns) {
      return InvalidArgument("--sweep: more than {} runs", kMaxRuns);
    }
    for (size_t i = 0; i < runs->size(); ++i) {
      for (const std::string& value : sweep.values) {
        more.push_back((*runs)[i]);
        TK_RETURN_IF_ERROR(replay::SetOption(sweep.name, value, &more.back()));
        const std::string& label = (*labels)[i];
        more_labels.push_back((label.empty() ? "" : label + " ") + sweep.name + "=" + value);
      }
    }
    *runs = std::move(more);
    *labels = std::move(more_labels);
  }
  return absl::OkStatus();
}

// Hit rate against capacity, a line a policy, and how TTFT is distributed, a line for each run of
// the last run's capacities.
absl::Status WritePlot(const std::string& path, const std::vector<std::string>& labels,
                       const std::vector<Result>& results) {
  using replay::Chart;
  Chart hits{.title = "Hits against capacity",
             .x_label = "host and disk, GiB",
             .y_label = "% of blocks",
             .log_x = true,
             .lines = {}};
  Chart ttft{.title = "",
             .x_label = "seconds",
             .y_label = "share of requests",
             .log_x = true,
             .lines = {}};
  std::map<std::string, std::map<double, double>> by_policy;
  const auto bytes_of = [](const Result& result) { return result.host_bytes + result.disk_bytes; };
  std::set<std::string> names;
  for (size_t i = 0; i < results.size(); ++i) {
    const Metrics& m = results[i].metrics;
    const double gib = static_cast<double>(bytes_of(results[i])) / double(kGiB);
    const auto percent = [&](uint64_t blocks) {
      return 100 * Ratio(static_cast<double>(blocks), static_cast<double>(m.blocks));
    };
    by_policy[results[i].options.policy][gib] = percent(m.hit_blocks);
    if (results[i].has_optimum) {
      by_policy["optimum"][gib] = percent(results[i].optimal_hit_blocks);
    }
    if (bytes_of(results[i]) != bytes_of(results.back())) continue;
    // The policy says enough where it is another in every run.
    const std::string& policy = results[i].options.policy;
    const bool is_new = names.insert(policy).second;
    ttft.lines.push_back(
        replay::CumulativeLine(is_new || labels[i].empty() ? policy : labels[i], m.ttft_with));
  }
  ttft.title = fmt::format("Time to first token with {:.4g} GiB",
                           static_cast<double>(bytes_of(results.back())) / double(kGiB));
  ttft.lines.push_back(replay::CumulativeLine("no store", results.front().metrics.ttft_without));
  for (const auto& [policy, points] : by_policy) {
    hits.lines.push_back({policy, {points.begin(), points.end()}});
  }
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return ErrnoStatus(errno, "open \"" + path + "\"");
  const std::string svg = replay::RenderSvg({hits, ttft});
  const bool written = std::fwrite(svg.data(), 1, svg.size(), file) == svg.size();
  if (std::fclose(file) != 0 || !written) return ErrnoStatus(errno, "write \"" + path + "\"");
  return absl::OkStatus();
}

// A path is a socket; "tcp://HOST:PORT" and "HOST:PORT" are addresses.
absl::StatusOr<Connection> ConnectTo(Invocation& invocation, const std::string& where) {
  constexpr std::string_view kTcp = "tcp://";
  GlobalOptions global;
  global.timeout = invocation.timeout();
  const bool tcp = where.starts_with(kTcp);
  if (tcp || (where.find('/') == std::string::npos && where.find(':') != std::string::npos)) {
    global.tcp = tcp ? where.substr(kTcp.size()) : where;
  } else {
    global.socket = where;
  }
  return invocation.environment().connect(global);
}

Json RealRow(const replay::RealResult& result) {
  const replay::RealCounts& counts = result.counts;
  Json json = ReplayRow(result.real);
  json["wrong_bytes"] = counts.wrong_bytes;
  json["verified_bytes"] = counts.verified_bytes;
  json["saved_bytes"] = counts.saved_bytes;
  json["damaged_pages"] = counts.damaged_pages;
  json["short_saves"] = counts.short_saves;
  const auto add = [&](const std::string& name, const std::vector<float>& values) {
    const replay::Summary summary = replay::Summarize(values);
    json[name + "_mean"] = summary.mean;
    json[name + "_p50"] = summary.p50;
    json[name + "_p99"] = summary.p99;
  };
  add("restore_s", counts.restore_s);
  add("save_s", counts.save_s);
  const Json expected = ReplayRow(result.expected);
  for (const char* key : {"hit_rate_requests", "hit_rate_tokens", "hit_rate_blocks",
                          "hit_rate_blocks_host", "hit_rate_blocks_disk"}) {
    json["virtual_" + std::string(key)] = expected[key];
  }
  return json;
}

absl::StatusOr<ExitCode> RunReal(Invocation& invocation, const ReplayArguments& arguments) {
  if (!arguments.sweeps.empty()) return InvalidArgument("--real: no --sweep beside it");
  TK_ASSIGN_OR_RETURN(const replay::Trace trace, replay::LoadTrace(arguments.options));
  TK_ASSIGN_OR_RETURN(const Connection connection, ConnectTo(invocation, arguments.real));
  Progress progress(invocation.environment(), "replay");
  const uint64_t bytes =
      trace.reference_count * trace.block_tokens * arguments.options.real.bytes_per_token;
  const auto show = [&](uint64_t done, uint64_t total) {
    progress.Update(static_cast<uint64_t>(double(bytes) * Ratio(double(done), double(total))),
                    bytes);
  };
  TK_ASSIGN_OR_RETURN(const replay::RealResult result,
                      replay::ReplayReal(trace, arguments.options, connection.store, show));
  const std::vector<std::string> labels = {"virtual", "real"};
  const std::vector<Result> results = {result.expected, result.real};
  if (!arguments.plot.empty()) TK_RETURN_IF_ERROR(WritePlot(arguments.plot, labels, results));
  const replay::RealCounts& counts = result.counts;
  if (invocation.json()) {
    invocation.WriteJson(RealRow(result));
  } else {
    PrintReplayRows(labels, results, invocation);
    invocation.Print("{} compared, {} bytes wrong; {} pages damaged, {} saves cut short\n",
                     HumanBytes(counts.verified_bytes), HumanCount(counts.wrong_bytes),
                     HumanCount(counts.damaged_pages), HumanCount(counts.short_saves));
  }
  if (counts.wrong_bytes == 0) return ExitCode::kOk;
  invocation.Complain(fmt::format("{} wrong bytes; the first: {}", HumanCount(counts.wrong_bytes),
                                  counts.first_wrong));
  return ExitCode::kProblemFound;
}

absl::StatusOr<ExitCode> RunReplay(Invocation& invocation, const ReplayArguments& arguments) {
  if (!arguments.real.empty()) return RunReal(invocation, arguments);
  std::vector<Options> runs;
  std::vector<std::string> labels;
  TK_RETURN_IF_ERROR(Expand(arguments, &runs, &labels));
  std::vector<Result> results;
  Progress progress(invocation.environment(), "replay");
  for (size_t i = 0; i < runs.size(); ++i) {
    TK_ASSIGN_OR_RETURN(const replay::Trace trace, replay::LoadTrace(runs[i]));
    TK_ASSIGN_OR_RETURN(const replay::Model model, replay::ModelOf(runs[i]));
    // The bar counts the KV of all prompts of all runs.
    const double bytes = static_cast<double>(trace.reference_count) * trace.block_tokens *
                         static_cast<double>(model.kv_bytes_per_token);
    const auto show = [&](uint64_t done, uint64_t total) {
      const double share = (static_cast<double>(i) + Ratio(double(done), double(total)));
      progress.Update(static_cast<uint64_t>(bytes * share),
                      static_cast<uint64_t>(bytes * static_cast<double>(runs.size())));
    };
    TK_ASSIGN_OR_RETURN(Result result, replay::Replay(trace, runs[i], show));
    results.push_back(std::move(result));
  }
  if (!arguments.plot.empty()) {
    TK_RETURN_IF_ERROR(WritePlot(arguments.plot, labels, results));
  }
  if (!invocation.json()) {
    PrintReplayRows(labels, results, invocation);
  } else if (arguments.sweeps.empty()) {
    invocation.WriteJson(ReplayRow(results.front()));
  } else {
    Json json = {{"runs", Json::array()}};
    for (size_t i = 0; i < results.size(); ++i) {
      Json run = ReplayRow(results[i]);
      run["run"] = labels[i];
      json["runs"].push_back(run);
    }
    invocation.WriteJson(json);
  }
  return ExitCode::kOk;
}

}  // namespace

void AddReplayCommand(CommandLine& line) {
  CLI::App* command = line.Add(
      "replay",
      "Replay a request trace through the store's placement on a virtual clock; needs no daemon",
      {"turnkeep replay conversation.jsonl.gz --host-blocks 10000",
       "turnkeep replay agent.jsonl.gz --host-live-share 0.1 --json",
       "turnkeep replay sharegpt --model llama-13b --queue gpu --host-gib 119 --disk-gib 9313",
       "turnkeep replay trace.csv --host-gib 64 --disk-gib 512 --sweep host-gib=16,32,64",
       "turnkeep replay trace.csv --real /tmp/tk/turnkeep.sock --watermarks 0.95:0.9"});
  const auto arguments = std::make_shared<ReplayArguments>();
  command
      ->add_option("trace", arguments->options.trace,
                   "The trace, plain or gzip; \"sharegpt\": generated conversations")
      ->type_name("FILE")
      ->required();
  command->add_flag("--skip-bad", arguments->options.read.skip_bad,
                    "Leave out malformed lines and count them");
  for (const replay::OptionSpec& spec : replay::OptionSpecs()) {
    const std::string name = spec.name;
    command
        ->add_option_function<std::string>(
            "--" + name,
            [arguments, name](const std::string& value) {
              const absl::Status status = replay::SetOption(name, value, &arguments->options);
              if (!status.ok()) throw CLI::ValidationError(MessageOf(status));
            },
            spec.help)
        ->type_name(spec.type);
  }
  command
      ->add_option("--sweep", arguments->sweeps,
                   "One run for each value of an option; several sweeps: each combination")
      ->type_name("OPTION=V,V,...");
  command
      ->add_option(
          "--real", arguments->real,
          "Against the daemon at this socket or address, with generated KV of which every\n"
          "restored byte is compared; capacities and policy are the daemon's, and\n"
          "--watermarks must be too. Exit code 1: bytes were wrong")
      ->type_name("SOCKET|HOST:PORT");
  command
      ->add_option("--plot", arguments->plot,
                   "Draws hit rate against capacity for each policy, and TTFT")
      ->type_name("FILE.svg");
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) { return RunReplay(invocation, *arguments); };
  });
}

}  // namespace turnkeep
