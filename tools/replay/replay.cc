#include "replay.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <absl/time/clock.h>
#include <fmt/format.h>

#include "core/status.h"
#include "core/units.h"
#include "optimum.h"

namespace turnkeep::replay {
namespace {

uint64_t GibToBytes(double gib) { return static_cast<uint64_t>(gib * double(kGiB)); }

absl::StatusOr<uint64_t> BlocksToBytes(uint64_t blocks, uint64_t block_bytes) {
  uint64_t bytes = 0;
  if (!CheckedMultiply(blocks, block_bytes, &bytes) || bytes > uint64_t{1} << 52) {
    return InvalidArgument("{} blocks of {} bytes are more than 4 PiB", blocks, block_bytes);
  }
  return bytes;
}

// The order in which a trace with fixed times is served.
std::vector<uint32_t> AllInOrder(const Trace& trace) {
  std::vector<uint32_t> order(trace.requests.size());
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<double> TimesOf(const Trace& trace) {
  std::vector<double> times;
  times.reserve(trace.requests.size());
  for (const TraceRequest& request : trace.requests) times.push_back(request.time_s);
  return times;
}

absl::StatusOr<uint64_t> PeakLive(const Trace& trace, const Options& options) {
  const std::vector<uint32_t> order = AllInOrder(trace);
  if (options.live_sessions) {
    if (options.live_ttl_s > 0) return InvalidArgument("--live-sessions: not with --live-ttl");
    return PeakSessionBlocks(trace, order);
  }
  const NextUses uses(trace, order);
  return options.live_ttl_s > 0 ? PeakUnexpiredBlocks(uses, TimesOf(trace), options.live_ttl_s)
                                : PeakLiveBlocks(uses);
}

absl::Status SetCapacities(const Trace& trace, const Options& options, Result* result) {
  if (options.host_live_share) {
    if (trace.closed_loop) return InvalidArgument("--host-live-share: needs a trace with times");
    TK_ASSIGN_OR_RETURN(const uint64_t live, PeakLive(trace, options));
    const auto host = static_cast<uint64_t>(double(live) * *options.host_live_share);
    TK_ASSIGN_OR_RETURN(result->host_bytes, BlocksToBytes(host, result->block_bytes));
    TK_ASSIGN_OR_RETURN(result->disk_bytes, BlocksToBytes(live - host, result->block_bytes));
  }
  if (options.host_gib) result->host_bytes = GibToBytes(*options.host_gib);
  if (options.disk_gib) result->disk_bytes = GibToBytes(*options.disk_gib);
  if (trace.whole_sessions && (options.host_blocks || options.disk_blocks)) {
    return InvalidArgument("whole sessions have no fixed size: give --host-gib and --disk-gib");
  }
  if (options.host_blocks) {
    TK_ASSIGN_OR_RETURN(result->host_bytes,
                        BlocksToBytes(*options.host_blocks, result->block_bytes));
  }
  if (options.disk_blocks) {
    TK_ASSIGN_OR_RETURN(result->disk_bytes,
                        BlocksToBytes(*options.disk_blocks, result->block_bytes));
  }
  return absl::OkStatus();
}

Cost CostOf(const Result& result, const Model& model, const Prices& prices) {
  constexpr double kSecondsPerHour = 3600;
  constexpr double kGb = 1e9;
  Cost cost;
  const Metrics& m = result.metrics;
  cost.gpu_with = m.gpu_s_with / kSecondsPerHour * model.gpus * prices.gpu_hour;
  cost.gpu_without = m.gpu_s_without / kSecondsPerHour * model.gpus * prices.gpu_hour;
  // Memory and disk are paid for as long as the GPUs work.
  const double hours = m.gpu_s_with / kSecondsPerHour;
  cost.dram = hours * double(result.host_bytes) / kGb * prices.dram_gb_hour;
  cost.disk = hours * double(result.disk_bytes) / kGb * prices.disk_gb_hour;
  return cost;
}

// What a run of `options` is, but for what is simulated.
absl::StatusOr<Result> Prepare(const Trace& trace, const Options& options,
                               SimulatorOptions* simulator) {
  Result result;
  result.options = options;
  result.distinct_blocks = trace.block_count;
  result.references = trace.reference_count;
  result.bad_lines = trace.bad_lines;
  result.chunk_tokens = trace.block_tokens;
  TK_ASSIGN_OR_RETURN(simulator->model, ModelOf(options));
  result.block_bytes = options.block_bytes.value_or(
      RoundUp(simulator->model.kv_bytes_per_token * std::max(trace.block_tokens, 1u), kBlockBytes));
  TK_RETURN_IF_ERROR(SetCapacities(trace, options, &result));
  simulator->cache = {
      .host_bytes = result.host_bytes,
      .disk_bytes = result.disk_bytes,
      .policy = options.policy,
      .whole_sessions = trace.whole_sessions,
      .high_watermark = options.high_watermark,
      .low_watermark = options.low_watermark,
      .write_through = options.write_through,
      .prefetch_bytes = static_cast<uint64_t>(double(result.host_bytes) * options.prefetch_share),
      .disk_bytes_per_s = options.disk_gb_per_s * 1e9};
  simulator->block_bytes = result.block_bytes;
  simulator->reserve_window = options.reserve_window;
  simulator->host_bytes_per_s = options.host_gb_per_s * 1e9;
  simulator->disk_bytes_per_s = options.disk_gb_per_s * 1e9;
  simulator->queue = options.queue;
  simulator->batch = options.batch;
  simulator->read_buffer_bytes = GibToBytes(options.read_buffer_gib);
  simulator->lookahead = options.lookahead;
  simulator->warmup = options.warmup;
  simulator->decline = options.decline;
  simulator->stop_reasons = options.stop_reasons;
  return result;
}

absl::Status RunIt(const Trace& trace, const SimulatorOptions& simulator, Result* result) {
  const auto start = std::chrono::steady_clock::now();
  TK_ASSIGN_OR_RETURN(result->metrics, Simulate(trace, simulator));
  result->wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Options& options = result->options;
  if (!trace.whole_sessions) {
    const NextUses uses(trace, result->metrics.order);
    result->has_optimum = true;
    // What is written through is in both tiers.
    const uint64_t bytes = options.write_through ? std::max(result->host_bytes, result->disk_bytes)
                                                 : result->host_bytes + result->disk_bytes;
    result->optimal_hit_blocks = OptimalHits(uses, bytes / result->block_bytes,
                                             std::min<uint64_t>(options.warmup, uses.size()));
  }
  result->cost = CostOf(*result, simulator.model, options.prices);
  return absl::OkStatus();
}

absl::StatusOr<Trace> LoadWhole(const Options& options) {
  if (options.trace == "sharegpt") {
    if (options.chunk_tokens != 0) {
      return InvalidArgument("--chunk-tokens: sharegpt's sessions are kept whole");
    }
    TK_ASSIGN_OR_RETURN(const Model model, ModelOf(options));
    GeneratorOptions generator = options.generator;
    generator.window_tokens = model.window_tokens;
    generator.seed = options.read.seed;
    return GenerateConversations(generator);
  }
  TK_ASSIGN_OR_RETURN(Trace trace, ReadTrace(options.trace, options.format, options.read));
  if (options.chunk_tokens == 0 || options.chunk_tokens == trace.block_tokens) return trace;
  if (options.chunk_tokens % trace.block_tokens != 0) {
    return InvalidArgument("--chunk-tokens: {} is no multiple of the trace's {}",
                           options.chunk_tokens, trace.block_tokens);
  }
  return Regroup(trace, options.chunk_tokens);
}

}  // namespace

absl::StatusOr<Trace> LoadTrace(const Options& options) {
  TK_ASSIGN_OR_RETURN(Trace trace, LoadWhole(options));
  if (options.first_requests > 0) KeepFirst(options.first_requests, &trace);
  return trace;
}

absl::StatusOr<Result> Replay(const Trace& trace, const Options& options,
                              const std::function<void(uint64_t, uint64_t)>& progress) {
  SimulatorOptions simulator;
  TK_ASSIGN_OR_RETURN(Result result, Prepare(trace, options, &simulator));
  simulator.progress = progress;
  TK_RETURN_IF_ERROR(RunIt(trace, simulator, &result));
  return result;
}

absl::StatusOr<RealResult> ReplayReal(const Trace& trace, const Options& options, KvStore* store,
                                      const std::function<void(uint64_t, uint64_t)>& progress) {
  if (options.lookahead > 0 || options.queue != QueueRule::kNone) {
    return InvalidArgument("--real: neither --lookahead nor --queue gpu");
  }
  RealOptions real_options = options.real;
  real_options.run_name = fmt::format("replay-{:x}", absl::ToUnixNanos(absl::Now()));
  TK_ASSIGN_OR_RETURN(const auto real, RealStore::Open(trace, real_options, store));
  TK_ASSIGN_OR_RETURN(const StoreStatus status, store->Status());
  Options as_daemon = options;
  as_daemon.block_bytes = real->slot_bytes();
  as_daemon.host_gib = as_daemon.disk_gib = std::nullopt;
  as_daemon.host_live_share = std::nullopt;
  as_daemon.host_blocks = status.host.capacity_bytes / *as_daemon.block_bytes;
  as_daemon.disk_blocks = status.disk.capacity_bytes / *as_daemon.block_bytes;
  as_daemon.policy = status.policy;
  as_daemon.write_through = status.durability != "none" && status.disk.capacity_bytes > 0;
  RealResult result;
  TK_ASSIGN_OR_RETURN(result.expected, Replay(trace, as_daemon, nullptr));
  SimulatorOptions simulator;
  TK_ASSIGN_OR_RETURN(result.real, Prepare(trace, as_daemon, &simulator));
  simulator.store = real.get();
  simulator.progress = progress;
  const absl::Status ran = RunIt(trace, simulator, &result.real);
  const absl::Status finished = real->Finish();
  TK_RETURN_IF_ERROR(ran);
  TK_RETURN_IF_ERROR(finished);
  result.counts = real->counts();
  return result;
}

}  // namespace turnkeep::replay
