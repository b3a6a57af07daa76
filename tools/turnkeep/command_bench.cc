// turnkeep bench store: what this machine and file system give, each figure with its bound.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "progress.h"
#include "store_bench.h"

namespace turnkeep {
namespace {

struct BenchArguments {
  std::string directory = ".";
  std::vector<uint64_t> chunk_counts = {10'000, 100'000, 1'000'000};
  uint64_t mebibytes = 512;
  uint32_t rounds = 5;
  uint32_t samples = 400;
};

// Shows one bar for each thing that is being done.
class Bars {
 public:
  explicit Bars(Environment& environment) : environment_(environment) {}
  void Update(const std::string& what, uint64_t done, uint64_t total) {
    if (what != what_) {
      what_ = what;
      bar_ = std::make_unique<Progress>(environment_, what);
    }
    bar_->Update(done, total);
  }

 private:
  Environment& environment_;
  std::string what_;
  std::unique_ptr<Progress> bar_;
};

struct Results {
  bench::BandwidthResult bandwidth;
  bench::AmplificationResult amplification;
  std::vector<bench::ScaleResult> scales;
};

Json ToJson(const bench::ScaleResult& scale) {
  return {{"chunks", scale.chunks},
          {"session_open_us_p50", scale.session_open_us_p50},
          {"session_open_us_p99", scale.session_open_us_p99},
          {"lookup_hit_us_p50", scale.lookup_hit_us_p50},
          {"lookup_hit_us_p99", scale.lookup_hit_us_p99},
          {"lookup_miss_us_p50", scale.lookup_miss_us_p50},
          {"lookup_miss_us_p99", scale.lookup_miss_us_p99},
          {"round_trip_us_p50", scale.round_trip_us_p50},
          {"hash_prompt_us", scale.hash_prompt_us},
          {"metadata_bytes_per_chunk", scale.metadata_bytes_per_chunk},
          {"reopen_s", scale.reopen_s}};
}

Json ToJson(const Results& results) {
  // The figures at the largest store stand at the top, as the others do.
  Json json = ToJson(results.scales.back());
  const auto share = [&](const char* name, const bench::Share& value) {
    json[std::string(name) + "_share"] = value.share();
    json[std::string(name) + "_bytes_per_s"] = value.measured;
    json[std::string(name) + "_bound_bytes_per_s"] = value.bound;
  };
  share("host_restore", results.bandwidth.host_restore);
  share("disk_restore", results.bandwidth.disk_restore);
  share("disk_load", results.bandwidth.disk_load);
  share("disk_save", results.bandwidth.disk_save);
  json["device"] = results.bandwidth.device;
  json["append_write_amplification"] = results.amplification.append_write_amplification;
  json["append_write_amplification_bound"] = results.amplification.bound;
  json["append_new_kv_bytes"] = results.amplification.new_kv_bytes;
  json["append_device_bytes"] = results.amplification.device_bytes;
  json["append_index_bytes"] = results.amplification.index_bytes;
  json["scales"] = Json::array();
  for (const auto& scale : results.scales) json["scales"].push_back(ToJson(scale));
  return json;
}

std::string Rate(double bytes_per_s) {
  return HumanBytes(static_cast<uint64_t>(bytes_per_s)) + "/s";
}

void Print(const Results& results, Invocation& invocation) {
  Table shares({{"FIGURE"},
                {"MEASURED", Align::kRight},
                {"BOUND", Align::kRight},
                {"SHARE", Align::kRight},
                {"BOUND IS"}});
  const auto add = [&](const char* name, const bench::Share& share, const char* bound) {
    shares.AddRow({name, Rate(share.measured), Rate(share.bound),
                   fmt::format("{:.2f}", share.share()), bound});
  };
  add("host_restore_share", results.bandwidth.host_restore, "memcpy of the same pages, one thread");
  add("disk_restore_share", results.bandwidth.disk_restore,
      "raw direct reads, same size and depth");
  add("disk_load_share", results.bandwidth.disk_load, "the same reads; without the engine's copy");
  add("disk_save_share", results.bandwidth.disk_save, "raw direct writes, same size and depth");
  const bench::AmplificationResult& append = results.amplification;
  shares.AddRow(
      {"append_write_amplification", fmt::format("{:.3f}", append.append_write_amplification),
       fmt::format("{:.3f}", append.bound), "", "whole chunks: new tokens and the old tail's"});
  invocation.Write(shares.Render(invocation.style()));
  invocation.Print("device: {}\n\n", results.bandwidth.device);
  Table scales({{"CHUNKS", Align::kRight},
                {"OPEN us p50", Align::kRight},
                {"p99", Align::kRight},
                {"HIT us p50", Align::kRight},
                {"p99", Align::kRight},
                {"MISS us p50", Align::kRight},
                {"p99", Align::kRight},
                {"ROUND TRIP us", Align::kRight},
                {"HASH us", Align::kRight},
                {"BYTES A CHUNK", Align::kRight},
                {"REOPEN s", Align::kRight}});
  const auto us = [](double value) { return fmt::format("{:.0f}", value); };
  for (const auto& s : results.scales) {
    scales.AddRow({HumanCount(s.chunks), us(s.session_open_us_p50), us(s.session_open_us_p99),
                   us(s.lookup_hit_us_p50), us(s.lookup_hit_us_p99), us(s.lookup_miss_us_p50),
                   us(s.lookup_miss_us_p99), us(s.round_trip_us_p50), us(s.hash_prompt_us),
                   us(s.metadata_bytes_per_chunk), fmt::format("{:.2f}", s.reopen_s)});
  }
  invocation.Write(scales.Render(invocation.style()));
  invocation.Write(
      "Bounds of a look-up: an empty round trip, and for a hit hashing its 131,072 tokens.\n");
}

absl::StatusOr<ExitCode> RunBenchStore(Invocation& invocation, const BenchArguments& arguments) {
  if (arguments.chunk_counts.empty()) return InvalidArgument("--chunks: no count is given");
  for (const uint64_t count : arguments.chunk_counts) {
    if (count < 4'000 || count > 10'000'000)
      return InvalidArgument("--chunks: {} is outside 4000..10000000", count);
  }
  if (arguments.mebibytes < 64 || arguments.mebibytes > 65'536) {
    return InvalidArgument("--mebibytes: {} is outside 64..65536", arguments.mebibytes);
  }
  if (arguments.rounds == 0 || arguments.samples == 0)
    return InvalidArgument("--rounds and --samples must not be 0");
  Bars bars(invocation.environment());
  bench::StoreBenchOptions options;
  options.directory = fmt::format("{}/turnkeep-bench-{}", arguments.directory, getpid());
  options.chunk_counts = arguments.chunk_counts;
  options.bandwidth_bytes = arguments.mebibytes * kMiB;
  options.rounds = arguments.rounds;
  options.samples = arguments.samples;
  options.progress = [&](const std::string& what, uint64_t done, uint64_t total) {
    bars.Update(what, done, total);
  };
  std::error_code error;
  std::filesystem::create_directories(options.directory, error);
  if (error) return InvalidArgument("--directory: \"{}\": {}", options.directory, error.message());
  options.directory = std::filesystem::absolute(options.directory).string();
  Results results;
  const absl::Status status = [&]() -> absl::Status {
    TK_ASSIGN_OR_RETURN(results.bandwidth, bench::MeasureBandwidth(options));
    TK_ASSIGN_OR_RETURN(results.amplification, bench::MeasureAmplification(options));
    TK_ASSIGN_OR_RETURN(results.scales, bench::MeasureScales(options));
    return absl::OkStatus();
  }();
  std::filesystem::remove_all(options.directory, error);
  TK_RETURN_IF_ERROR(status);
  if (invocation.json()) {
    invocation.WriteJson(ToJson(results));
  } else {
    Print(results, invocation);
  }
  return ExitCode::kOk;
}

}  // namespace

void AddBenchCommands(CommandLine& line) {
  CLI::App* group =
      line.Add("bench", "Measure this machine; needs no daemon",
               {"turnkeep bench store", "turnkeep bench attention", "turnkeep bench gather"});
  group->require_subcommand(1);
  AddBenchAttentionCommand(line, group);
  AddBenchGatherCommand(line, group);
  AddBenchOverlapCommand(line, group);
  AddBenchPolicyCommand(line, group);
  CLI::App* command =
      line.AddTo(group, "store",
                 "Bandwidths, latencies, write amplification and memory of the store, each with\n"
                 "its bound measured in the same run. The full run takes some minutes, 6 GiB of\n"
                 "memory and 12 GiB of disk.",
                 {"turnkeep bench store", "turnkeep bench store --json",
                  "turnkeep bench store --chunks 10000 --mebibytes 256 --directory /mnt/nvme"});
  const auto arguments = std::make_shared<BenchArguments>();
  command->add_option("--directory", arguments->directory, "On the file system to be measured")
      ->type_name("DIR")
      ->capture_default_str();
  command->add_option("--chunks", arguments->chunk_counts, "Sizes of the store for the latencies")
      ->delimiter(',')
      ->type_name("N,N,...")
      ->capture_default_str();
  command->add_option("--mebibytes", arguments->mebibytes, "KV moved per round of the bandwidths")
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Rounds of the bandwidths")
      ->capture_default_str();
  command->add_option("--samples", arguments->samples, "Samples of each latency")
      ->capture_default_str();
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) {
      return RunBenchStore(invocation, *arguments);
    };
  });
}

}  // namespace turnkeep
