// turnkeep replay: a request trace through the store's placement on a virtual clock.
#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "core/units.h"
#include "human.h"
#include "plot.h"
#include "progress.h"
#include "replay.h"

namespace turnkeep {
namespace {

using replay::Metrics;
using replay::Options;
using replay::Ratio;
using replay::Result;
using replay::Summarize;
using replay::Summary;

struct ReplayArguments {
  Options options;
  std::vector<std::string> sweeps;
  std::string plot;
};

Json ToJson(const Result& result) {
  const Metrics& m = result.metrics;
  const auto share = [](uint64_t part, uint64_t whole) {
    return Ratio(static_cast<double>(part), static_cast<double>(whole));
  };
  Json json = {
      {"requests", m.requests},
      {"policy", result.options.policy},
      {"host_bytes", result.host_bytes},
      {"disk_bytes", result.disk_bytes},
      {"chunk_tokens", result.chunk_tokens},
      {"block_bytes", result.block_bytes},
      {"distinct_blocks", result.distinct_blocks},
      {"block_references", result.references},
      {"bad_lines", result.bad_lines},
      {"hit_rate_requests", share(m.hit_requests, m.requests)},
      {"hit_rate_tokens", share(m.hit_tokens, m.tokens)},
      {"hit_rate_blocks", share(m.hit_blocks, m.blocks)},
      {"hit_rate_requests_host", share(m.hit_requests_host, m.requests)},
      {"hit_rate_tokens_host", share(m.hit_tokens_host, m.tokens)},
      {"hit_rate_blocks_host", share(m.hit_blocks_host, m.blocks)},
      {"hit_rate_requests_disk", share(m.hit_requests - m.hit_requests_host, m.requests)},
      {"hit_rate_tokens_disk", share(m.hit_tokens - m.hit_tokens_host, m.tokens)},
      {"hit_rate_blocks_disk", share(m.hit_blocks_disk, m.blocks)},
      {"share_of_hits_host", share(m.hit_blocks_host, m.hit_blocks)},
  };
  json["optimal_hit_rate_blocks"] = nullptr;
  json["share_of_optimal"] = nullptr;
  if (result.has_optimum) {
    json["optimal_hit_rate_blocks"] = share(result.optimal_hit_blocks, m.blocks);
    json["share_of_optimal"] =
        result.optimal_hit_blocks == 0 ? 1.0 : share(m.hit_blocks, result.optimal_hit_blocks);
  }
  const auto add = [&](const std::string& name, const Summary& summary) {
    json[name + "_mean"] = summary.mean;
    json[name + "_p50"] = summary.p50;
    json[name + "_p99"] = summary.p99;
  };
  add("ttft_s", Summarize(m.ttft_with));
  add("ttft_without_s", Summarize(m.ttft_without));
  json["queue_wait_s_mean"] = Ratio(m.wait_s, static_cast<double>(m.requests));
  json["queue_peak"] = m.peak_queue;
  json["prefill_throughput_ratio"] = Ratio(m.prefill_s_without, m.prefill_s_with);
  json["gpu_time_ratio"] = Ratio(m.gpu_s_without, m.gpu_s_with);
  json["gpu_s"] = m.gpu_s_with;
  json["gpu_without_s"] = m.gpu_s_without;
  json["cost_usd"] = result.cost.with();
  json["cost_without_usd"] = result.cost.gpu_without;
  json["cost_storage_usd"] = result.cost.dram + result.cost.disk;
  json["disk_written_bytes"] = m.disk_written_bytes;
  json["prefetched_blocks"] = m.prefetched_blocks;
  json["prefetch_accuracy"] = m.prefetched_blocks == 0
                                  ? Json(nullptr)
                                  : Json(share(m.prefetched_used_blocks, m.prefetched_blocks));
  json["declined_restores"] = m.declined_restores;
  json["evicted_blocks"] = m.evicted_blocks;
  json["simulated_s"] = m.span_s;
  json["wall_s"] = result.wall_s;
  json["references_per_s"] = Ratio(static_cast<double>(result.references), result.wall_s);
  return json;
}

std::string Percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

void Print(const std::vector<std::string>& labels, const std::vector<Result>& results,
           Invocation& invocation) {
  const Result& first = results.front();
  invocation.Print("{} requests, {} block references, {} distinct blocks of {} tokens\n",
                   HumanCount(first.metrics.requests), HumanCount(first.references),
                   HumanCount(first.distinct_blocks), first.chunk_tokens);
  if (first.bad_lines > 0) {
    invocation.Print("{} bad lines left out\n", HumanCount(first.bad_lines));
  }
  Table table({{"RUN"},
               {"POLICY"},
               {"HOST", Align::kRight},
               {"DISK", Align::kRight},
               {"REQUESTS", Align::kRight},
               {"TOKENS", Align::kRight},
               {"BLOCKS", Align::kRight},
               {"HOST HITS", Align::kRight},
               {"OPTIMUM", Align::kRight},
               {"OF IT", Align::kRight},
               {"TTFT mean", Align::kRight},
               {"p50", Align::kRight},
               {"p99", Align::kRight},
               {"WITHOUT", Align::kRight},
               {"PREFILL", Align::kRight},
               {"GPU", Align::kRight},
               {"COST", Align::kRight},
               {"WRITTEN", Align::kRight},
               {"DECLINED", Align::kRight}});
  const auto times = [](double ratio) { return fmt::format("{:.2f}x", ratio); };
  for (size_t i = 0; i < results.size(); ++i) {
    const Json json = ToJson(results[i]);
    const auto number = [&](const char* key) { return json[key].get<double>(); };
    const auto rate = [&](const char* key) {
      return json[key].is_null() ? std::string("-") : Percent(number(key));
    };
    table.AddRow(
        {labels[i], results[i].options.policy, HumanBytes(results[i].host_bytes),
         HumanBytes(results[i].disk_bytes), rate("hit_rate_requests"), rate("hit_rate_tokens"),
         rate("hit_rate_blocks"), rate("share_of_hits_host"), rate("optimal_hit_rate_blocks"),
         rate("share_of_optimal"), HumanSeconds(number("ttft_s_mean")),
         HumanSeconds(number("ttft_s_p50")), HumanSeconds(number("ttft_s_p99")),
         HumanSeconds(number("ttft_without_s_mean")), times(number("prefill_throughput_ratio")),
         times(number("gpu_time_ratio")),
         fmt::format("{:+.0f}%", 100 * (Ratio(number("cost_usd"), number("cost_without_usd")) - 1)),
         HumanBytes(results[i].metrics.disk_written_bytes),
         HumanCount(results[i].metrics.declined_restores)});
  }
  invocation.Write(table.Render(invocation.style()));
}

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

// Hit rate against capacity, a line a policy, and how TTFT is distributed, a line a run.
absl::Status WritePlot(const std::string& path, const std::vector<std::string>& labels,
                       const std::vector<Result>& results) {
  using replay::Chart;
  Chart hits{.title = "Hits against capacity",
             .x_label = "host and disk, GiB",
             .y_label = "% of blocks",
             .log_x = true,
             .lines = {}};
  Chart ttft{.title = "Time to first token",
             .x_label = "seconds",
             .y_label = "share of requests",
             .log_x = true,
             .lines = {}};
  std::map<std::string, std::map<double, double>> by_policy;
  for (size_t i = 0; i < results.size(); ++i) {
    const Metrics& m = results[i].metrics;
    const double gib =
        static_cast<double>(results[i].host_bytes + results[i].disk_bytes) / double(kGiB);
    const auto percent = [&](uint64_t blocks) {
      return 100 * Ratio(static_cast<double>(blocks), static_cast<double>(m.blocks));
    };
    by_policy[results[i].options.policy][gib] = percent(m.hit_blocks);
    if (results[i].has_optimum) {
      by_policy["optimum"][gib] = percent(results[i].optimal_hit_blocks);
    }
    ttft.lines.push_back(
        replay::CumulativeLine(labels[i].empty() ? "with" : labels[i], m.ttft_with));
  }
  ttft.lines.push_back(replay::CumulativeLine("without", results.front().metrics.ttft_without));
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

absl::StatusOr<ExitCode> RunReplay(Invocation& invocation, const ReplayArguments& arguments) {
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
    Print(labels, results, invocation);
  } else if (arguments.sweeps.empty()) {
    invocation.WriteJson(ToJson(results.front()));
  } else {
    Json json = {{"runs", Json::array()}};
    for (size_t i = 0; i < results.size(); ++i) {
      Json run = ToJson(results[i]);
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
       "turnkeep replay trace.csv --host-gib 64 --disk-gib 512 --sweep host-gib=16,32,64"});
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
      ->add_option("--plot", arguments->plot,
                   "Draws hit rate against capacity for each policy, and TTFT")
      ->type_name("FILE.svg");
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) { return RunReplay(invocation, *arguments); };
  });
}

}  // namespace turnkeep
