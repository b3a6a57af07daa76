#include "simulator.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <queue>

#include "core/status.h"
#include "core/units.h"
#include "look_ahead.h"
#include "restore_model.h"

namespace turnkeep::replay {
namespace {

constexpr uint64_t kProgressStep = 64;

class Simulation {
 public:
  Simulation(const Trace& trace, const SimulatorOptions& options, Cache* cache)
      : trace_(trace),
        options_(options),
        model_(options.model),
        cache_(*cache),
        seen_(trace.block_count) {
    for (uint32_t i = 0; i < trace.requests.size(); ++i) {
      if (!trace.closed_loop || trace.requests[i].turn == 0) {
        arrivals_.push({trace.requests[i].time_s, i});
      }
    }
    if (options.lookahead == 0) return;
    if (options.queue == QueueRule::kGpu) {
      queue_ahead_.emplace(trace, options.model.kv_bytes_per_token, options.disk_bytes_per_s,
                           cache);
    } else if (!trace.closed_loop) {
      trace_ahead_.emplace(trace, options.lookahead, cache);
    }
  }

  absl::StatusOr<Metrics> Run() {
    metrics_.order.reserve(trace_.requests.size());
    while (Step()) {
      TK_RETURN_IF_ERROR(status_);
    }
    metrics_.host_used_bytes = cache_.placement().host().used_bytes;
    metrics_.disk_used_bytes = cache_.placement().disk().used_bytes;
    metrics_.disk_written_bytes = cache_.disk_written_bytes() - written_before_;
    metrics_.evicted_blocks = cache_.evicted_blocks() - evicted_before_;
    if (queue_ahead_) metrics_.prefetched_blocks = queue_ahead_->prefetched_blocks();
    if (options_.cache.prefetch_bytes > 0) CountPrefetches();
    metrics_.span_s = std::max(0.0, end_s_ - start_s_);
    return std::move(metrics_);
  }

 private:
  struct Arrival {
    double time_s;
    uint32_t request;
    bool operator>(const Arrival& other) const {
      return time_s != other.time_s ? time_s > other.time_s : request > other.request;
    }
  };
  struct TurnEnd {
    double time_s;
    uint32_t request;
    TurnInfo turn;
    bool operator>(const TurnEnd& other) const {
      return time_s != other.time_s ? time_s > other.time_s : request > other.request;
    }
  };
  struct Active {
    double end_steps;  // the value of steps_ at which its answer is complete
    uint32_t request;
    bool operator>(const Active& other) const {
      return end_steps != other.end_steps ? end_steps > other.end_steps : request > other.request;
    }
  };

  // One event. False when nothing is left.
  bool Step() {
    if (options_.queue == QueueRule::kNone) return StepAlone();
    TakeArrivals();
    if (!waiting_.empty() && active_.size() < options_.batch) {
      StartNext();
    } else if (!active_.empty()) {
      Decode();
    } else if (!arrivals_.empty()) {
      now_s_ = std::max(now_s_, arrivals_.top().time_s);
    } else {
      return false;
    }
    return true;
  }

  bool StepAlone() {
    if (arrivals_.empty()) return false;
    const Arrival arrival = arrivals_.top();
    arrivals_.pop();
    EndTurnsUntil(arrival.time_s);
    now_s_ = arrival.time_s;
    cache_.AdvanceTo(NowNs());
    const TraceRequest& request = trace_.requests[arrival.request];
    const double ttft_s = Serve(arrival.request);
    // A request that decodes alone has the step to itself; its share in a batch is charged.
    const double context = static_cast<double>(request.input_tokens) + request.output_tokens;
    const double step_s = model_.DecodeStepSeconds(options_.batch, context * options_.batch);
    ChargeDecode(request.output_tokens * step_s / options_.batch);
    Finish(arrival.request, now_s_ + ttft_s + request.output_tokens * step_s);
    return true;
  }

  int64_t NowNs() const { return static_cast<int64_t>(now_s_ * 1e9); }

  void EndTurnsUntil(double time_s) {
    for (; !turn_ends_.empty() && turn_ends_.top().time_s <= time_s; turn_ends_.pop()) {
      const TurnEnd end = turn_ends_.top();
      now_s_ = std::max(now_s_, end.time_s);
      cache_.AdvanceTo(NowNs());
      cache_.EndTurn(trace_.RunsOf(trace_.requests[end.request]), end.turn, NowNs());
    }
  }

  // The turn as it is told at its beginning. Its end, if the source recorded when that was, is told
  // then, and no later than the session's next turn begins.
  TurnInfo Begin(uint32_t index, TurnInfo turn) {
    const TraceRequest& request = trace_.requests[index];
    if (options_.queue != QueueRule::kNone || request.service_s <= 0) return turn;
    double end_s = now_s_ + request.service_s;
    if (request.next_turn != kNone) {
      end_s = std::min(end_s, trace_.requests[request.next_turn].time_s);
    }
    turn_ends_.push({end_s, index, turn});
    turn.stop = turnkeep::StopReason::kUnknown;
    turn.answer_tokens = turnkeep::TurnInfo::kUnknownTokens;
    turn.running = true;
    return turn;
  }

  void CountPrefetches() {
    const Placement::PrefetchUsage prefetch = cache_.placement().prefetch();
    metrics_.prefetched_blocks = prefetch.begun - prefetch.failed - prefetched_before_;
    metrics_.prefetched_used_blocks = prefetch.used - prefetched_used_before_;
  }

  void TakeArrivals() {
    while (!arrivals_.empty() && arrivals_.top().time_s <= now_s_) {
      waiting_.push_back(arrivals_.top());
      if (queue_ahead_) queue_ahead_->Arrived(arrivals_.top().request);
      arrivals_.pop();
    }
    if (queue_ahead_) LookIntoQueue();
    metrics_.peak_queue = std::max<uint64_t>(metrics_.peak_queue, waiting_.size());
  }

  void LookIntoQueue() {
    queue_ahead_->Complete(now_s_);
    const size_t window = std::min<size_t>(waiting_.size(), options_.lookahead);
    uint64_t free_bytes = cache_.placement().host().capacity_bytes;
    for (size_t i = 0; i < window; ++i) {
      const uint64_t room_bytes = RoomOf(trace_.requests[waiting_[i].request]);
      if (room_bytes > free_bytes) return;
      free_bytes -= room_bytes;
      queue_ahead_->MayPrefetch(waiting_[i].request, now_s_);
    }
  }

  void StartNext() {
    const Arrival arrival = waiting_.front();
    waiting_.pop_front();
    const TraceRequest& request = trace_.requests[arrival.request];
    const double wait_s = now_s_ - arrival.time_s;
    // It could be loaded since it came, but after the one before it.
    const double idle_s = std::max(0.0, now_s_ - std::max(link_free_s_, arrival.time_s));
    const auto buffer = static_cast<double>(options_.read_buffer_bytes);
    preload_s_ = std::min(idle_s, buffer / options_.host_bytes_per_s);
    now_s_ += Serve(arrival.request);
    if (counting_) metrics_.wait_s += wait_s;
    if (request.output_tokens == 0) return Finish(arrival.request, now_s_);
    context_tokens_ += static_cast<double>(request.input_tokens) + request.output_tokens;
    active_.push({steps_ + request.output_tokens, arrival.request});
  }

  // Runs the batch until an answer is complete, or until somebody arrives for a free place.
  void Decode() {
    const double step_s =
        model_.DecodeStepSeconds(static_cast<uint32_t>(active_.size()), context_tokens_);
    double duration_s = (active_.top().end_steps - steps_) * step_s;
    if (active_.size() < options_.batch && !arrivals_.empty() &&
        arrivals_.top().time_s < now_s_ + duration_s) {
      duration_s = std::max(0.0, arrivals_.top().time_s - now_s_);
      steps_ += duration_s / step_s;
      now_s_ = std::max(now_s_, arrivals_.top().time_s);
      return ChargeDecode(duration_s);
    }
    steps_ = active_.top().end_steps;
    now_s_ += duration_s;
    ChargeDecode(duration_s);
    while (!active_.empty() && active_.top().end_steps <= steps_) {
      const TraceRequest& request = trace_.requests[active_.top().request];
      context_tokens_ -= static_cast<double>(request.input_tokens) + request.output_tokens;
      const uint32_t index = active_.top().request;
      active_.pop();
      Finish(index, now_s_);
    }
  }

  void ChargeDecode(double seconds) {
    if (!counting_) return;
    metrics_.decode_s += seconds;
    metrics_.gpu_s_with += seconds;
    metrics_.gpu_s_without += seconds;
  }

  void Finish(uint32_t index, double time_s) {
    end_s_ = std::max(end_s_, time_s);
    const TraceRequest& request = trace_.requests[index];
    if (!trace_.closed_loop || request.next_turn == kNone) return;
    const double think_s = trace_.requests[request.next_turn].think_s;
    arrivals_.push({time_s + think_s, request.next_turn});
  }

  // Restores, prefills and saves; the seconds to the first token.
  double Serve(uint32_t index) {
    const TraceRequest& request = trace_.requests[index];
    const size_t position = metrics_.order.size();
    metrics_.order.push_back(index);
    if (position == options_.warmup) StartCounting();
    if (options_.progress && position % kProgressStep == 0) {
      options_.progress(position, trace_.requests.size());
    }
    const auto runs = trace_.RunsOf(request);
    if (trace_ahead_) trace_ahead_->Before(index);
    const Found found = Find(index, runs);
    const RestorePlan plan = Plan(request, found);
    link_free_s_ = now_s_ + plan.load_s;
    if (counting_) Count(request, found, plan);
    if (queue_ahead_)
      metrics_.prefetched_used_blocks +=
          std::min(found.host_blocks, queue_ahead_->PrefetchedFor(index));
    const int64_t now_ns = NowNs();
    if (options_.store != nullptr) {
      status_.Update(options_.store->Save(index));
      return plan.ttft_s;
    }
    if (trace_.whole_sessions) {
      UseSession(request, runs, found.blocks(), now_ns);
    } else {
      const TurnInfo turn = Begin(index, TurnOf(request, runs));
      cache_.Use(runs, found.blocks(), options_.block_bytes, turn, now_ns);
    }
    if (trace_ahead_) trace_ahead_->After(index);
    if (queue_ahead_) queue_ahead_->Served(index);
    return plan.ttft_s;
  }

  Found Find(uint32_t index, std::span<const BlockRun> runs) {
    if (options_.store == nullptr) return cache_.Find(runs);
    const auto found = options_.store->Restore(index);
    status_.Update(found.status());
    return found.ok() ? *found : Found{};
  }

  TurnInfo TurnOf(const TraceRequest& request, std::span<const BlockRun> runs) {
    uint64_t fresh = 0;
    for (const BlockRun& run : runs) {
      for (uint32_t i = 0; i < run.count; ++i) {
        fresh += seen_[run.first + i] ? 0 : 1;
        seen_[run.first + i] = true;
      }
    }
    return {.stop = options_.stop_reasons ? static_cast<turnkeep::StopReason>(request.stop)
                                          : turnkeep::StopReason::kUnknown,
            .number = request.turn + 1,
            .context_tokens = request.input_tokens,
            .new_tokens = fresh * trace_.block_tokens,
            .answer_tokens = request.output_tokens,
            .tail = HasPartialTail(request)};
  }
  // Whether the prompt does not fill its last block.
  bool HasPartialTail(const TraceRequest& request) const {
    return !trace_.whole_sessions &&
           uint64_t{request.block_count} * trace_.block_tokens > request.input_tokens;
  }

  // What of a request is stored when it has been served.
  uint64_t RoomOf(const TraceRequest& request) const {
    if (!trace_.whole_sessions) return request.block_count * options_.block_bytes;
    const uint64_t tokens = options_.reserve_window
                                ? trace_.block_tokens
                                : uint64_t{request.input_tokens} + request.output_tokens;
    return RoundUp(std::max<uint64_t>(1, tokens) * model_.kv_bytes_per_token, kBlockBytes);
  }

  // The session's one block grows to the prompt and its answer, or has the window from the start.
  void UseSession(const TraceRequest& request, std::span<const BlockRun> runs, uint32_t found,
                  int64_t now_ns) {
    if (found > 0) cache_.Forget(runs[0].first, now_ns);
    cache_.Use(runs, 0, RoomOf(request), TurnOf(request, runs), now_ns);
  }

  RestorePlan Plan(const TraceRequest& request, const Found& found) const {
    const auto kv = static_cast<double>(model_.kv_bytes_per_token);
    double host = double(found.host_blocks) * trace_.block_tokens;
    double disk = double(found.disk_blocks) * trace_.block_tokens;
    if (trace_.whole_sessions) {
      host = found.host_blocks > 0 ? request.history_tokens : 0;
      disk = found.disk_blocks > 0 ? request.history_tokens : 0;
    }
    // The last token is always computed, and the last block may be partly filled.
    const double most = request.input_tokens == 0 ? 0 : request.input_tokens - 1.0;
    host = std::min(host, most);
    disk = std::min(disk, most - host);
    return PlanRestore({.model = &model_,
                        .input_tokens = static_cast<double>(request.input_tokens),
                        .host_tokens = host,
                        .disk_tokens = disk,
                        .host_load_tokens_per_s = options_.host_bytes_per_s / kv,
                        .disk_load_tokens_per_s = options_.disk_bytes_per_s / kv,
                        .preload_s = preload_s_},
                       options_.decline);
  }

  void StartCounting() {
    counting_ = true;
    start_s_ = now_s_;
    written_before_ = cache_.disk_written_bytes();
    evicted_before_ = cache_.evicted_blocks();
    const Placement::PrefetchUsage prefetch = cache_.placement().prefetch();
    prefetched_before_ = prefetch.used + prefetch.wasted;  // the others count
    prefetched_used_before_ = prefetch.used;
  }

  void Count(const TraceRequest& request, const Found& found, const RestorePlan& plan) {
    Metrics& m = metrics_;
    ++m.requests;
    m.tokens += request.input_tokens;
    m.blocks += request.block_count;
    m.hit_blocks += found.blocks();
    m.hit_blocks_host += found.host_blocks;
    m.hit_blocks_disk += found.disk_blocks;
    m.hit_requests += found.blocks() > 0 ? 1 : 0;
    m.hit_requests_host += found.blocks() > 0 && found.disk_blocks == 0 ? 1 : 0;
    m.hit_tokens += static_cast<uint64_t>(plan.host_tokens + plan.disk_tokens + 0.5);
    m.hit_tokens_host += static_cast<uint64_t>(plan.host_tokens + 0.5);
    m.declined_restores += plan.declined ? 1 : 0;
    const double whole_s = model_.PrefillSeconds(0, request.input_tokens);
    m.ttft_with.push_back(static_cast<float>(plan.ttft_s));
    m.ttft_without.push_back(static_cast<float>(whole_s));
    m.prefill_s_with += plan.ttft_s;
    m.prefill_s_without += whole_s;
    m.gpu_s_with += plan.ttft_s;
    m.gpu_s_without += whole_s;
  }

  const Trace& trace_;
  const SimulatorOptions& options_;
  const Model& model_;
  Cache& cache_;
  std::vector<bool> seen_;  // by block: some request had it
  Metrics metrics_;
  std::priority_queue<Arrival, std::vector<Arrival>, std::greater<>> arrivals_;
  std::deque<Arrival> waiting_;
  std::priority_queue<Active, std::vector<Active>, std::greater<>> active_;
  double steps_ = 0;           // decode iterations so far
  double context_tokens_ = 0;  // of the active requests
  double now_s_ = 0;
  double link_free_s_ = 0;  // the link to the GPU has loaded the last job
  double preload_s_ = 0;    // of the job that begins
  double start_s_ = 0;
  double end_s_ = 0;
  bool counting_ = false;
  std::optional<TraceLookAhead> trace_ahead_;
  std::optional<QueueLookAhead> queue_ahead_;
  uint64_t written_before_ = 0;
  uint64_t evicted_before_ = 0;
  uint64_t prefetched_before_ = 0;
  uint64_t prefetched_used_before_ = 0;
  std::priority_queue<TurnEnd, std::vector<TurnEnd>, std::greater<>> turn_ends_;
  absl::Status status_;  // of options_.store
};

}  // namespace

absl::StatusOr<Metrics> Simulate(const Trace& trace, const SimulatorOptions& options) {
  const Model& model = options.model;
  if (model.prefill_tokens_per_s <= 0 || model.memory_bytes_per_s <= 0 ||
      model.kv_bytes_per_token == 0 || options.host_bytes_per_s <= 0 ||
      options.disk_bytes_per_s <= 0 || options.batch == 0) {
    return InvalidArgument("replay: speeds, KV bytes a token and batch must be above 0");
  }
  if (!trace.whole_sessions &&
      (options.block_bytes == 0 || options.block_bytes % kBlockBytes != 0)) {
    return InvalidArgument("replay: blocks of {} bytes are no multiple of {}", options.block_bytes,
                           kBlockBytes);
  }
  if (options.cache.prefetch_bytes > 0 && options.queue != QueueRule::kNone) {
    return InvalidArgument("replay: a queue has prefetches of its own; --prefetch needs none");
  }
  TK_ASSIGN_OR_RETURN(const auto cache, Cache::Create(options.cache));
  return Simulation(trace, options, cache.get()).Run();
}

}  // namespace turnkeep::replay
