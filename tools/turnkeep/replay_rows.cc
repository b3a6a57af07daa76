#include "replay_rows.h"

#include "human.h"
#include "table.h"

namespace turnkeep {

using replay::Metrics;
using replay::Ratio;
using replay::Result;
using replay::Summarize;
using replay::Summary;

namespace {

std::string Percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

}  // namespace

Json ReplayRow(const Result& result) {
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
      {"share_of_hit_tokens_host", share(m.hit_tokens_host, m.hit_tokens)},
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

void PrintReplayRows(const std::vector<std::string>& labels, const std::vector<Result>& results,
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
    const Json json = ReplayRow(results[i]);
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

}  // namespace turnkeep
