// Hit counts, the optimum, times and determinism of a replay, on cases done by hand.
#include <algorithm>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "core/units.h"
#include "optimum.h"
#include "plot.h"
#include "replay.h"

namespace turnkeep::replay {
namespace {

using Runs = std::vector<TraceBuilder::SourceRun>;

// One request a second, blocks of ten tokens.
Trace Make(const std::vector<Runs>& prompts) {
  TraceBuilder builder("test", 10);
  const uint32_t session = builder.NewSession();
  for (size_t i = 0; i < prompts.size(); ++i) {
    TraceRequest request;
    request.time_s = static_cast<double>(i);
    request.session = session;
    uint64_t blocks = 0;
    for (const auto& run : prompts[i]) blocks += run.count;
    request.input_tokens = static_cast<uint32_t>(10 * blocks);
    request.output_tokens = 1;
    EXPECT_TRUE(builder.Add(request, prompts[i]).ok());
  }
  return std::move(builder).Finish();
}

std::vector<uint32_t> Order(const Trace& trace) {
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < trace.requests.size(); ++i) order.push_back(i);
  return order;
}

Result RunReplay(const Trace& trace, uint64_t host_blocks, uint64_t disk_blocks) {
  Options options;
  options.host_blocks = host_blocks;
  options.disk_blocks = disk_blocks;
  options.prefill_floor = false;  // prompts so short would not be restored
  const auto result = Replay(trace, options, nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return *result;
}

TEST(ReplaySimulator, LruCountsPrefixHitsByTier) {
  // a = 1..3, b = 11..13, then a again: with three host blocks a is on disk by then.
  const Trace trace = Make({{{1, 3}}, {{11, 3}}, {{1, 3}}, {{1, 3}}});
  const Result result = RunReplay(trace, 3, 3);
  EXPECT_EQ(result.metrics.requests, 4u);
  EXPECT_EQ(result.metrics.blocks, 12u);
  EXPECT_EQ(result.metrics.hit_blocks, 6u);
  EXPECT_EQ(result.metrics.hit_blocks_disk, 3u);
  EXPECT_EQ(result.metrics.hit_blocks_host, 3u);
  EXPECT_EQ(result.metrics.hit_requests, 2u);
  EXPECT_EQ(result.metrics.hit_requests_host, 1u);
  // The last token of a prompt is always computed.
  EXPECT_EQ(result.metrics.hit_tokens, 58u);
  // a goes to disk; when it comes back b goes too, and pushes nothing out that is needed.
  EXPECT_EQ(result.metrics.disk_written_bytes, 6 * result.block_bytes);
  EXPECT_EQ(result.optimal_hit_blocks, 6u);
}

// Three prompts in turn and room for two: LRU never hits, who looks ahead keeps one of them.
TEST(ReplaySimulator, LookingAheadKeepsWhatIsUsedSooner) {
  std::vector<std::vector<TraceBuilder::SourceRun>> prompts;
  for (uint64_t i = 0; i < 12; ++i) prompts.push_back({{1 + 10 * (i % 3), 2}});
  const Trace trace = Make(prompts);
  Options options;
  options.host_blocks = 4;
  options.disk_blocks = 0;
  const auto hits = [&](const char* policy, uint64_t lookahead) {
    options.policy = policy;
    options.lookahead = lookahead;
    const auto result = Replay(trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics.hit_blocks;
  };
  EXPECT_EQ(hits("lru", 0), 0u);
  EXPECT_EQ(hits("look_ahead", 0), 0u) << "nothing is known";
  EXPECT_GE(hits("look_ahead", 2), 6u);
  EXPECT_GE(hits("belady", 100), hits("look_ahead", 2));
}

TEST(ReplaySimulator, WhatDoesNotFitKeepsItsPrefix) {
  const Trace trace = Make({{{1, 6}}, {{1, 6}}});
  EXPECT_EQ(RunReplay(trace, 4, 0).metrics.hit_blocks, 4u);
  EXPECT_EQ(RunReplay(trace, 0, 0).metrics.hit_blocks, 0u);
  EXPECT_EQ(RunReplay(trace, 0, 6).metrics.hit_blocks_disk, 6u);
  EXPECT_EQ(RunReplay(trace, 100, 0).metrics.hit_blocks, 6u);
}

TEST(ReplaySimulator, ABlockAfterAMissingOneIsNoHit) {
  const Trace trace = Make({{{1, 5}}});
  const auto cache = Cache::Create({.host_bytes = 100 * kBlockBytes});
  ASSERT_TRUE(cache.ok());
  const auto runs = trace.RunsOf(trace.requests[0]);
  (*cache)->Use(runs, 0, kBlockBytes, {}, 0);
  EXPECT_EQ((*cache)->Find(runs).blocks(), 5u);
  (*cache)->Forget(runs[0].first + 2, 1);
  EXPECT_EQ((*cache)->Find(runs).blocks(), 2u);
}

TEST(ReplaySimulator, WarmUpIsServedButNotCounted) {
  const Trace trace = Make({{{1, 3}}, {{1, 3}}, {{1, 4}}});
  Options options;
  options.host_blocks = 10;
  options.warmup = 2;
  const auto result = Replay(trace, options, nullptr);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->metrics.requests, 1u);
  EXPECT_EQ(result->metrics.blocks, 4u);
  EXPECT_EQ(result->metrics.hit_blocks, 3u);
  EXPECT_EQ(result->optimal_hit_blocks, 3u);
}

TEST(ReplayOptimum, IsWhatIsCountedByHand) {
  // Two sessions in turn; two blocks of room. LRU keeps none of a cycle, the optimum half.
  const Trace trace = Make({{{1, 2}}, {{11, 2}}, {{1, 2}}, {{11, 2}}, {{1, 2}}});
  const NextUses uses(trace, Order(trace));
  EXPECT_EQ(OptimalHits(uses, 2, 0), 4u) << "1 and 2 stay";
  EXPECT_EQ(OptimalHits(uses, 3, 0), 5u);
  EXPECT_EQ(OptimalHits(uses, 4, 0), 6u);
  EXPECT_EQ(OptimalHits(uses, 0, 0), 0u);
  EXPECT_EQ(PeakLiveBlocks(uses), 4u);
  EXPECT_EQ(RunReplay(trace, 2, 0).metrics.hit_blocks, 0u);
}

TEST(ReplayOptimum, UnexpiredIsWhatWasUsedInTheLastSeconds) {
  const Trace trace = Make({{{1, 2}}, {{11, 3}}, {{1, 2}}, {{21, 1}}});
  const NextUses uses(trace, Order(trace));
  const std::vector<double> times = {0, 1, 4, 9};
  EXPECT_EQ(PeakLiveBlocks(uses), 2u);
  EXPECT_EQ(PeakUnexpiredBlocks(uses, times, 0.5), 3u);
  EXPECT_EQ(PeakUnexpiredBlocks(uses, times, 1), 5u) << "what ends now is still there";
  EXPECT_EQ(PeakUnexpiredBlocks(uses, times, 4), 5u) << "a block counts once";
  EXPECT_EQ(PeakUnexpiredBlocks(uses, times, 8), 6u);
}

// Session 0 has requests 0, 2 and 5, session 1 the others. Block 1 is both's.
TEST(ReplayOptimum, ASessionsBlocksLiveUntilItsLastTurn) {
  Trace trace = Make({{{1, 3}}, {{1, 1}, {11, 4}}, {{1, 1}}, {{1, 1}}, {{31, 9}}, {{1, 1}}});
  trace.session_count = 2;
  for (const uint32_t request : {1u, 3u, 4u}) trace.requests[request].session = 1;
  EXPECT_EQ(PeakSessionBlocks(trace, Order(trace)), 3u + 4u + 9u);
  trace.requests[4].session = 0;
  EXPECT_EQ(PeakSessionBlocks(trace, Order(trace)), 3u + 9u) << "session 1 had ended";
  trace.requests[5].session = 1;
  trace.requests[4].session = 1;
  EXPECT_EQ(PeakSessionBlocks(trace, Order(trace)), 1u + 4u + 9u) << "two of session 0 had ended";
  Trace handed_on = Make({{{1, 3}}, {{1, 1}, {11, 4}}, {{1, 1}}, {{1, 1}}});
  handed_on.session_count = 2;
  for (const uint32_t request : {1u, 3u}) handed_on.requests[request].session = 1;
  EXPECT_EQ(PeakSessionBlocks(handed_on, Order(handed_on)), 3u + 4u) << "a block counts once";
}

TEST(ReplayOptions, TiersFromWhatHasNotExpired) {
  const Trace trace = Make({{{1, 2}}, {{11, 8}}, {{1, 2}}});
  Options options;
  options.policy = "lru";
  ASSERT_TRUE(SetOption("host-live-share", "0.5", &options).ok());
  const auto used_again = Replay(trace, options, nullptr);
  ASSERT_TRUE(SetOption("live-ttl", "1000000", &options).ok());
  const auto unexpired = Replay(trace, options, nullptr);
  ASSERT_TRUE(used_again.ok() && unexpired.ok()) << used_again.status() << unexpired.status();
  EXPECT_EQ(unexpired->host_bytes, 5 * used_again->host_bytes);
  EXPECT_EQ(unexpired->disk_bytes, 5 * used_again->disk_bytes);
  ASSERT_TRUE(SetOption("live-sessions", "on", &options).ok());
  EXPECT_FALSE(Replay(trace, options, nullptr).ok()) << "beside --live-ttl";
  options.live_ttl_s = 0;
  EXPECT_EQ(Replay(trace, options, nullptr)->host_bytes, unexpired->host_bytes);
}

// Belady's rule block by block: after each request keep those used again soonest.
uint64_t SlowOptimum(const Trace& trace, uint64_t capacity) {
  std::vector<std::vector<uint32_t>> paths;
  for (const TraceRequest& request : trace.requests) {
    paths.emplace_back();
    for (const BlockRun& run : trace.RunsOf(request)) {
      for (uint32_t i = 0; i < run.count; ++i) paths.back().push_back(run.first + i);
    }
  }
  const auto next_use = [&](uint32_t block, size_t after) {
    for (size_t i = after + 1; i < paths.size(); ++i) {
      if (std::count(paths[i].begin(), paths[i].end(), block) > 0) return i;
    }
    return paths.size();
  };
  std::set<uint32_t> cached;
  uint64_t hits = 0;
  for (size_t now = 0; now < paths.size(); ++now) {
    for (const uint32_t block : paths[now]) {
      if (!cached.contains(block)) break;
      ++hits;
    }
    cached.insert(paths[now].begin(), paths[now].end());
    while (cached.size() > capacity) {
      // Children have higher numbers than their parents here.
      cached.erase(*std::max_element(cached.begin(), cached.end(), [&](uint32_t a, uint32_t b) {
        return std::pair(next_use(a, now), a) < std::pair(next_use(b, now), b);
      }));
    }
  }
  return hits;
}

Trace RandomTrace(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Runs> prompts;
  for (int i = 0; i < 60; ++i) {
    const uint64_t session = random() % 8;
    const uint64_t shared = random() % 4;
    prompts.push_back({{1, 1 + shared}, {100 * (session + 1), 1 + random() % 6}});
  }
  return Make(prompts);
}

TEST(ReplayOptimum, EqualsBeladyBlockByBlockAndNoPolicyBeatsIt) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    const Trace trace = RandomTrace(seed);
    const NextUses uses(trace, Order(trace));
    for (const uint64_t capacity : {1, 5, 12, 25, 60}) {
      const uint64_t optimal = OptimalHits(uses, capacity, 0);
      EXPECT_EQ(optimal, SlowOptimum(trace, capacity)) << capacity;
      EXPECT_LE(RunReplay(trace, capacity, 0).metrics.hit_blocks, optimal) << capacity;
      EXPECT_LE(RunReplay(trace, capacity / 2, capacity - capacity / 2).metrics.hit_blocks,
                optimal);
    }
  }
}

// Sessions take turns; each comes back ten seconds after its turn of one second has ended. The host
// tier has room for one of the two, the disk for both.
Trace TakingTurns() {
  TraceBuilder builder("turns", 10);
  const uint32_t sessions[] = {builder.NewSession(), builder.NewSession()};
  for (int turn = 0; turn < 400; ++turn) {
    TraceRequest request;
    request.time_s = turn % 2 == 0 ? turn * 6.0 : turn * 6.0 - 0.5;
    request.service_s = 1;
    request.session = sessions[turn % 2];
    request.input_tokens = 100;
    request.output_tokens = 1;
    request.stop = StopReason::kToolUse;
    const Runs runs = {{turn % 2 == 0 ? 1u : 101u, 10}};
    EXPECT_TRUE(builder.Add(request, runs).ok());
  }
  return std::move(builder).Finish();
}

TEST(ReplaySimulator, PrefetchesBringWhatNextUsePredictsAsFastAsTheDiskReads) {
  const Trace trace = TakingTurns();
  Options options;
  options.policy = "next_use";
  options.write_through = true;
  options.host_blocks = 12;
  options.disk_blocks = 40;
  options.warmup = 200;
  const auto run = [&](double prefetch, double disk_gb_per_s) {
    options.prefetch_share = prefetch;
    options.disk_gb_per_s = disk_gb_per_s;
    const auto result = Replay(trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics;
  };
  const Metrics without = run(0, 5);
  EXPECT_EQ(without.prefetched_blocks, 0u);
  const Metrics with = run(1, 5);
  EXPECT_EQ(with.hit_blocks, without.hit_blocks) << "nothing is lost";
  EXPECT_GT(with.hit_blocks_host, without.hit_blocks_host);
  EXPECT_GT(with.prefetched_used_blocks, 0u);
  EXPECT_LE(with.prefetched_used_blocks, with.prefetched_blocks);
  // A block of 1.3 MB takes longer than there is time between two turns.
  const Metrics slow = run(1, 0.0001);
  EXPECT_LT(slow.hit_blocks_host, with.hit_blocks_host);
}

TEST(ReplaySimulator, WhatTheNextRequestsNeedIsPrefetchedInTheirOrder) {
  const Trace trace = TakingTurns();
  Options options;
  options.policy = "look_ahead";
  options.lookahead = 2;
  options.write_through = true;
  options.host_blocks = 12;
  options.disk_blocks = 40;
  const auto host_hits = [&](double prefetch) {
    options.prefetch_share = prefetch;
    const auto result = Replay(trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics.hit_blocks_host;
  };
  const uint64_t without = host_hits(0);
  EXPECT_LT(without, host_hits(1));
  options.queue = QueueRule::kGpu;
  EXPECT_TRUE(absl::IsInvalidArgument(Replay(trace, options, nullptr).status()));
}

TEST(ReplaySimulator, TheSameTraceAndOptionsGiveTheSameResult) {
  const Trace trace = RandomTrace(7);
  const Result a = RunReplay(trace, 5, 9);
  const Result b = RunReplay(trace, 5, 9);
  EXPECT_EQ(a.metrics.order, b.metrics.order);
  EXPECT_EQ(a.metrics.hit_blocks, b.metrics.hit_blocks);
  EXPECT_EQ(a.metrics.disk_written_bytes, b.metrics.disk_written_bytes);
  EXPECT_EQ(a.metrics.ttft_with, b.metrics.ttft_with);
}

TEST(ReplaySimulator, OneServerMakesRequestsWaitInOrder) {
  const Trace trace = Make({{{1, 2}}, {{11, 2}}, {{21, 2}}});
  Options options;
  options.queue = QueueRule::kGpu;
  options.batch = 1;
  options.prefill_tokens_per_s = 10;  // two seconds a prompt, one arrival a second
  options.prefill_half_speed_tokens = 0;
  options.host_blocks = 100;
  const auto result = Replay(trace, options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  const Metrics& m = result->metrics;
  EXPECT_EQ(m.order, (std::vector<uint32_t>{0, 1, 2}));
  EXPECT_NEAR(m.prefill_s_without, 6, 1e-9);
  EXPECT_NEAR(m.wait_s, 1 + 2 + 3 * (m.decode_s / 3), 1e-6);
  EXPECT_NEAR(m.gpu_s_with, m.prefill_s_with + m.decode_s, 1e-9);
}

TEST(ReplaySimulator, DecodingReadsAtTheRateThatIsGiven) {
  const Trace trace = Make({{{1, 2}}, {{11, 2}}});
  Options options;
  options.queue = QueueRule::kGpu;
  options.host_blocks = 100;
  const auto decode_s = [&](const char* gb_per_s) {
    EXPECT_TRUE(SetOption("decode-gb-per-s", gb_per_s, &options).ok());
    const auto result = Replay(trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics.decode_s;
  };
  const double slow = decode_s("1000");
  EXPECT_GT(slow, 0);
  EXPECT_NEAR(decode_s("4000"), slow / 4, slow * 1e-6);
}

// The second of two prompts that wait is loaded while the first is prefilled.
TEST(ReplaySimulator, AReadBufferLoadsTheNextJobWhileTheServerIsBusy) {
  const Trace trace = Make({{{1, 4}}, {{11, 4}}, {{1, 5}}, {{11, 5}}});
  Options options;
  options.queue = QueueRule::kGpu;
  options.batch = 4;
  options.prefill_tokens_per_s = 10;
  options.kv_bytes_per_token = 1'000'000;
  options.host_gb_per_s = 0.015;  // 40 tokens in 2.7 s, the fifth block's prefill in one
  options.host_blocks = 100;
  options.warmup = 2;
  const auto ttft = [&](double gib) {
    options.read_buffer_gib = gib;
    const auto result = Replay(trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics.ttft_with;
  };
  const std::vector<float> without = ttft(0);
  const std::vector<float> with = ttft(1);
  const std::vector<float> half = ttft(0.02);
  ASSERT_EQ(with.size(), 2u);
  EXPECT_GT(without[1], 2.6);
  EXPECT_LT(with[0], 1.2) << "it waited while two prompts were prefilled";
  EXPECT_GT(half[0], with[0]);
  EXPECT_LT(half[0], without[0]);
}

TEST(ReplayPlot, IsOneSvgWithALineForEachSeries) {
  const std::string svg = RenderSvg(
      {{.title = "a < b",
        .x_label = "x",
        .y_label = "y",
        .log_x = true,
        .lines = {{"lru", {{1, 0.1}, {10, 0.5}, {100, 0.9}}}, {"fifo", {{1, 0.2}, {100, 0.4}}}}},
       {.title = "empty", .x_label = "", .y_label = "", .lines = {}}});
  size_t lines = 0;
  for (size_t at = svg.find("<polyline"); at != std::string::npos;
       at = svg.find("<polyline", at + 1)) {
    ++lines;
  }
  EXPECT_EQ(lines, 2u);
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  // The middle point of a logarithmic axis lies in the middle.
  EXPECT_NE(svg.find("70.0,315.6 300.0,"), std::string::npos) << svg;
  EXPECT_EQ(svg.find("empty"), std::string::npos);
  EXPECT_EQ(CumulativeLine("a", {3, 1, 2}, 2).points[1].first, 2.0);
}

// Who compares two charts of a file must not take one policy for another.
TEST(ReplayPlot, TheSameNameHasTheSameLookInEveryChart) {
  const Line lru{"lru", {{1, 0.1}, {10, 0.5}}};
  const Line fifo{"fifo", {{1, 0.2}, {10, 0.4}}};
  const auto svg = RenderSvg({{.title = "", .x_label = "", .y_label = "", .lines = {lru, fifo}},
                              {.title = "", .x_label = "", .y_label = "", .lines = {fifo, lru}}});
  std::vector<std::string> looks;
  for (size_t at = svg.find("<polyline"); at != std::string::npos;
       at = svg.find("<polyline", at + 1)) {
    const size_t fill = svg.find(" fill", at);
    looks.push_back(svg.substr(fill, svg.find('>', at) - fill));
  }
  ASSERT_EQ(looks.size(), 4u);
  EXPECT_EQ(looks[0], looks[3]);
  EXPECT_EQ(looks[1], looks[2]);
  EXPECT_NE(looks[0], looks[1]);
}

TEST(ReplayOptions, ValuesThatCannotBeAreRefusedByName) {
  const std::pair<const char*, const char*> bad[] = {
      {"host-gib", "-1"},        {"host-blocks", "x"},
      {"policy2", "lru"},        {"watermarks", "0.9"},
      {"watermarks", "0.8:0.9"}, {"starts", "weekly"},
      {"starts", "poisson:0"},   {"batch", "0"},
      {"queue", "long"},         {"decline", "maybe"},
      {"host-live-share", "2"},  {"kv-bytes-per-token", "0"},
      {"prefetch", "1.5"},       {"read-buffer-gib", "-1"},
      {"starts", "users:0"},     {"live-ttl", "0"},
      {"session-room", "half"},  {"decode-gb-per-s", "0"},
      {"think", "lognormal:43"}, {"think", "weekly:1"},
      {"prefill-floor", "0"},    {"prefill-half-speed-tokens", "-1"}};
  for (const auto& [name, value] : bad) {
    Options options;
    const auto status = SetOption(name, value, &options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name << " " << value;
    EXPECT_NE(std::string(status.message()).find(name), std::string::npos) << status;
  }
  EXPECT_FALSE(ParseSweep("policy").ok());
  EXPECT_EQ(ParseSweep("policy=lru,fifo")->values.size(), 2u);
}

}  // namespace
}  // namespace turnkeep::replay
