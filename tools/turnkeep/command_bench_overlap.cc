// turnkeep bench overlap: restore and save inside a layered compute loop.
#include <string>

#include "commands.h"
#include "core/status.h"
#include "core/units.h"
#include "cuda_bench.h"
#include "human.h"
#include "overlap_bench.h"
#include "progress.h"

namespace turnkeep {
namespace {

Json ToJson(const bench::OverlapRow& row) {
  return {{"loop", row.name},
          {"mode", row.mode},
          {"load_ms", row.load_s * 1e3},
          {"compute_ms", row.compute_s * 1e3},
          {"total_ms", row.total_s * 1e3},
          {"stall_ms", row.stall_s * 1e3},
          {"predicted_stall_ms", row.predicted_stall_s * 1e3},
          {"buffer_bytes", row.buffer_bytes}};
}

Json ToJson(const bench::OverlapResult& result) {
  Json json = {{"device", result.device},
               {"compute", "timed kernels"},
               {"bytes", result.bytes},
               {"layer_bytes", result.layer_bytes},
               {"stall_share", result.stall_share},
               {"stall_share_predicted", result.stall_share_predicted},
               {"stall_share_buffered", result.stall_share_buffered},
               {"slow_load_ratio", result.slow_load_ratio},
               {"async_save_hidden_share", result.async_save_hidden_share},
               {"save_sync_ms", result.save_sync_s * 1e3},
               {"save_async_ms", result.save_async_s * 1e3},
               {"buffer_bytes_predicted", result.buffer_bytes_predicted},
               {"buffer_bytes_measured", result.buffer_bytes_measured},
               {"rows", Json::array()}};
  for (const bench::OverlapRow& row : result.rows) json["rows"].push_back(ToJson(row));
  return json;
}

void Print(const bench::OverlapResult& result, Invocation& invocation) {
  Table table({{"LOOP"},
               {"MODE"},
               {"LOAD ms", Align::kRight},
               {"COMPUTE ms", Align::kRight},
               {"TOTAL ms", Align::kRight},
               {"STALL ms", Align::kRight},
               {"PREDICTED", Align::kRight},
               {"BUFFER", Align::kRight}});
  const auto ms = [](double seconds) { return fmt::format("{:.1f}", seconds * 1e3); };
  for (const bench::OverlapRow& row : result.rows) {
    table.AddRow({row.name, row.mode, ms(row.load_s), ms(row.compute_s), ms(row.total_s),
                  ms(row.stall_s), ms(row.predicted_stall_s), HumanBytes(row.buffer_bytes)});
  }
  invocation.Write(table.Render(invocation.style()));
  invocation.Print(
      "stall where loading is no slower: {:.1f}% of compute ({:.1f}% predicted), {:.1f}% with two "
      "layers loaded before\n"
      "total where loading is slower: {:.3f} of max(load, compute)\n"
      "buffer for no stall there: {} by the formula, {} measured\n"
      "save: {} ms when the engine waits, {} ms when it overlaps, {:.0f}% hidden\n"
      "{}; compute is a kernel of a set time{}; the store,\n"
      "digests, gather and scatter are real.\n",
      result.stall_share * 100, result.stall_share_predicted * 100,
      result.stall_share_buffered * 100, result.slow_load_ratio,
      HumanBytes(result.buffer_bytes_predicted), HumanBytes(result.buffer_bytes_measured),
      ms(result.save_sync_s), ms(result.save_async_s), result.async_save_hidden_share * 100,
      result.device, result.cuda ? "" : ", the link has a set bandwidth");
}

struct OverlapArguments {
  std::string device = "cpu";
  double link_gbps = 2;
  bench::OverlapOptions options;
};

absl::StatusOr<ExitCode> RunBenchOverlap(Invocation& invocation,
                                         const OverlapArguments& arguments) {
  bench::OverlapOptions options = arguments.options;
  if (options.layers < 2 || options.layers > 128)
    return InvalidArgument("--layers: {} is outside 2..128", options.layers);
  if (options.tokens < 16 || options.tokens * options.layers > 262'144)
    return InvalidArgument("--tokens: {} is below 16, or over 262144 with all layers",
                           options.tokens);
  if (!(arguments.link_gbps > 0))
    return InvalidArgument("--link: {} GB/s is not above 0", arguments.link_gbps);
  if (options.rounds == 0) return InvalidArgument("--rounds must not be 0");
  bench::OverlapDevice device = bench::HostOverlapDevice(arguments.link_gbps * 1e9);
  if (arguments.device == "cuda") {
    TK_RETURN_IF_ERROR(bench::CudaIsThere());
    TK_ASSIGN_OR_RETURN(device, bench::CudaOverlapDevice());
  }
  Progress bar(invocation.environment(), "loops");
  options.progress = [&](const std::string&, uint64_t done, uint64_t total) {
    bar.Update(done, total);
  };
  TK_ASSIGN_OR_RETURN(const bench::OverlapResult result,
                      bench::MeasureOverlap(options, std::move(device)));
  if (invocation.json()) {
    invocation.WriteJson(ToJson(result));
  } else {
    Print(result, invocation);
  }
  return ExitCode::kOk;
}

}  // namespace

void AddBenchOverlapCommand(CommandLine& line, CLI::App* group) {
  CLI::App* command = line.AddTo(
      group, "overlap",
      "Restore and save of a context inside a layered compute loop: without overlap, with it, and\n"
      "with the read buffer of CachedAttention's formula. On the host device (cpu) the link is "
      "set.",
      {"turnkeep bench overlap", "turnkeep bench overlap --device cuda",
       "turnkeep bench overlap --link 1 --tokens 512 --json"});
  const auto arguments = std::make_shared<OverlapArguments>();
  command->add_option("--device", arguments->device, "Whose memory the engine's pages are in")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--layers", arguments->options.layers, "Layers")->capture_default_str();
  command->add_option("--tokens", arguments->options.tokens, "Tokens restored, 4 KiB each a layer")
      ->capture_default_str();
  command->add_option("--link", arguments->link_gbps, "GB/s of the host device's link, each way")
      ->capture_default_str();
  command->add_option("--rounds", arguments->options.rounds, "Medians are over these")
      ->capture_default_str();
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) {
      return RunBenchOverlap(invocation, *arguments);
    };
  });
}

}  // namespace turnkeep
