// Generated conversations: their statistics, and how whole sessions are stored, ordered and
// prefetched.
#include <algorithm>
#include <set>

#include <gtest/gtest.h>

#include "core/units.h"
#include "generator.h"
#include "look_ahead.h"
#include "replay.h"

namespace turnkeep::replay {
namespace {

// A queue before one server, and a host tier for all.
Options OfConversations(uint32_t sessions) {
  Options options;
  options.trace = "sharegpt";
  options.model = "llama-13b";
  options.generator.sessions = sessions;
  options.queue = QueueRule::kGpu;
  options.host_gib = 1e5;
  return options;
}

TEST(ReplayGenerator, HasThePublishedStatistics) {
  const Trace trace = GenerateConversations({.sessions = 20'000, .window_tokens = 1u << 30});
  std::vector<uint64_t> turns(trace.session_count);
  std::vector<uint64_t> tokens(trace.session_count);
  for (const TraceRequest& request : trace.requests) {
    ++turns[request.session];
    tokens[request.session] = uint64_t{request.input_tokens} + request.output_tokens;
  }
  const auto share = [&](const std::vector<uint64_t>& of, uint64_t above) {
    return double(std::count_if(of.begin(), of.end(), [&](uint64_t v) { return v > above; })) /
           double(of.size());
  };
  EXPECT_NEAR(double(trace.requests.size()) / 20'000, 5.75, 0.1);
  EXPECT_NEAR(share(turns, 1), 0.73, 0.01);
  EXPECT_NEAR(share(tokens, 2000), 0.47, 0.02);
  EXPECT_NEAR(share(tokens, 4000), 0.30, 0.02);
  EXPECT_NEAR(trace.requests.back().time_s, 20'000, 600);
}

TEST(ReplayGenerator, ThinkTimesHaveTheDistributionThatIsAskedFor) {
  const auto quantile = [](const char* think, double share) {
    Options options;
    EXPECT_TRUE(SetOption("think", think, &options).ok()) << think;
    options.generator.sessions = 4000;
    std::vector<double> times;
    for (const TraceRequest& request : GenerateConversations(options.generator).requests) {
      times.push_back(request.think_s);
    }
    std::sort(times.begin(), times.end());
    return times[static_cast<size_t>(share * static_cast<double>(times.size()))];
  };
  EXPECT_EQ(quantile("fixed:43", 0.1), 43);
  EXPECT_NEAR(quantile("exponential:60", 0.5), 60 * 0.693, 2);
  EXPECT_NEAR(quantile("lognormal:43:0.55", 0.5), 43, 1.5);
  EXPECT_NEAR(quantile("lognormal:43:0.55", 0.9), 87, 3);
}

TEST(ReplayGenerator, ContextsStayInTheirWindowAndOverflowInvalidatesWhereAsked) {
  GeneratorOptions options = {.sessions = 2000, .window_tokens = 2048};
  const Trace kept = GenerateConversations(options);
  options.keep_on_overflow = false;
  const Trace lost = GenerateConversations(options);
  ASSERT_EQ(kept.requests.size(), lost.requests.size());
  uint64_t invalid = 0;
  for (size_t i = 0; i < kept.requests.size(); ++i) {
    EXPECT_LE(kept.requests[i].input_tokens, 2048u);
    EXPECT_EQ(kept.requests[i].input_tokens, lost.requests[i].input_tokens);
    EXPECT_EQ(kept.requests[i].turn > 0, kept.requests[i].history_tokens > 0);
    invalid += kept.requests[i].history_tokens != lost.requests[i].history_tokens ? 1 : 0;
  }
  EXPECT_GT(invalid, kept.requests.size() / 20);
}

TEST(ReplayGenerator, TurnsFollowOneAnotherAndWholeSessionsAreHits) {
  const Options options = OfConversations(300);
  const auto trace = LoadTrace(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  const auto result = Replay(*trace, options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->metrics.requests, trace->requests.size());
  EXPECT_EQ(result->metrics.hit_requests, trace->requests.size() - 300);
  EXPECT_FALSE(result->has_optimum);
  std::vector<uint32_t> next(300);
  for (const uint32_t index : result->metrics.order) {
    EXPECT_EQ(trace->requests[index].turn, next[trace->requests[index].session]++);
  }
}

// Four sessions and room for two. The first grows last, and comes back when it was evicted.
TEST(ReplaySimulator, FifoOfWholeSessionsGoesByWhoCameFirst) {
  const auto cache =
      Cache::Create({.host_bytes = 2 * kBlockBytes, .policy = "fifo", .whole_sessions = true});
  ASSERT_TRUE(cache.ok());
  int64_t now_ns = 0;
  const auto use = [&](uint32_t session) {
    const BlockRun runs[] = {{session, 1}};
    ++now_ns;
    if ((*cache)->Find(runs).blocks() > 0) (*cache)->Forget(session, now_ns);
    (*cache)->Use(runs, 0, kBlockBytes, {}, now_ns);
  };
  const auto stored = [&] {
    std::set<uint32_t> sessions;
    for (uint32_t i = 0; i < 4; ++i) {
      const BlockRun runs[] = {{i, 1}};
      if ((*cache)->Find(runs).blocks() > 0) sessions.insert(i);
    }
    return sessions;
  };
  use(0);
  use(1);
  use(0);  // it grows
  use(2);
  EXPECT_EQ(stored(), (std::set<uint32_t>{1, 2}));
  use(0);  // it is the oldest still, but room is made before it is there
  use(3);
  EXPECT_EQ(stored(), (std::set<uint32_t>{2, 3}));
}

TEST(ReplaySimulator, ASessionHasRoomForItsWindowWhereAsked) {
  Options options = OfConversations(50);
  const auto used_bytes = [&](const char* rule) {
    EXPECT_TRUE(SetOption("session-room", rule, &options).ok());
    const auto trace = LoadTrace(options);
    EXPECT_TRUE(trace.ok()) << trace.status();
    const auto result = Replay(*trace, options, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->metrics.host_used_bytes;
  };
  const auto model = FindModel("llama-13b");
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(used_bytes("window"),
            50 * RoundUp(model->window_tokens * model->kv_bytes_per_token, kBlockBytes));
  EXPECT_LT(used_bytes("used"), used_bytes("window") * 3 / 4);
}

// Room for 4,096 tokens, of which the session has used fewer: only these are read.
TEST(ReplaySimulator, APrefetchReadsWhatASessionHoldsNotItsRoom) {
  const Trace trace = GenerateConversations({.sessions = 20});
  const auto turn = std::find_if(trace.requests.begin(), trace.requests.end(),
                                 [](const TraceRequest& request) { return request.turn == 1; });
  ASSERT_NE(turn, trace.requests.end());
  const auto index = static_cast<uint32_t>(turn - trace.requests.begin());
  const auto runs = trace.RunsOf(*turn);
  const auto cache = Cache::Create({.host_bytes = kBlockBytes, .disk_bytes = kBlockBytes});
  ASSERT_TRUE(cache.ok());
  const BlockRun other[] = {{trace.block_count, 1}};
  (*cache)->Use(runs, 0, kBlockBytes, {}, 1);
  (*cache)->Use(other, 0, kBlockBytes, {}, 2);
  (*cache)->Forget(trace.block_count, 3);
  ASSERT_EQ((*cache)->Find(runs).disk_blocks, 1u);
  constexpr uint64_t kKvBytes = 10;
  constexpr double kBytesPerS = 1000;
  QueueLookAhead queue(trace, kKvBytes, kBytesPerS, cache->get());
  queue.Arrived(index);
  queue.MayPrefetch(index, 100);
  const double read_s = turn->history_tokens * double(kKvBytes) / kBytesPerS;
  queue.Complete(100 + read_s * 0.99);
  EXPECT_EQ((*cache)->Find(runs).host_blocks, 0u);
  queue.Complete(100 + read_s * 1.01);
  EXPECT_EQ((*cache)->Find(runs).host_blocks, 1u);
}

// Sessions differ in size, and nothing is read for which the jobs before leave no room.
TEST(ReplaySimulator, WhatIsPrefetchedForTheQueueStaysUntilItsJob) {
  Options options = OfConversations(600);
  options.policy = "look_ahead";
  options.lookahead = 100'000;
  options.host_gib = 40;
  options.disk_gib = 1e4;
  const auto trace = LoadTrace(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  const auto result = Replay(*trace, options, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->metrics.prefetched_blocks, 500u);
  EXPECT_GT(static_cast<double>(result->metrics.prefetched_used_blocks),
            0.98 * static_cast<double>(result->metrics.prefetched_blocks));
}

}  // namespace
}  // namespace turnkeep::replay
