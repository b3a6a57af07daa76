// `turnkeep replay --real`: hit rates as in the virtual run, every restored byte compared, and what
// is wrong seen.
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "core/status.h"
#include "core/units.h"
#include "replay.h"
#include "testing/client_factory.h"
#include "testing/hooked_kv_store.h"

namespace turnkeep::replay {
namespace {

using testing::DaemonHarness;
using testing::HookedKvStore;

constexpr uint32_t kBlockTokens = 32;

// Sessions in turn that share a system prompt of two blocks: each goes on from its last prompt, or
// now and then from an earlier block of it.
Trace MakeTrace(uint32_t requests, uint64_t seed) {
  std::mt19937_64 random(seed);
  TraceBuilder builder("generated", kBlockTokens);
  struct Session {
    uint32_t number;
    std::vector<TraceBuilder::SourceRun> runs;
  };
  std::vector<Session> sessions;
  uint64_t next_id = 10;
  for (uint32_t i = 0; i < requests; ++i) {
    if (sessions.size() < 40 && random() % 4 == 0) sessions.push_back({builder.NewSession(), {}});
    if (sessions.empty()) sessions.push_back({builder.NewSession(), {}});
    // Recent ones more often.
    const size_t back = std::min<size_t>(random() % 12, random() % sessions.size());
    Session& session = sessions[sessions.size() - 1 - back];
    if (session.runs.empty()) session.runs = {{0, 2}};
    if (session.runs.size() > 2 && random() % 10 == 0) session.runs.pop_back();
    const uint64_t count = 1 + random() % 6;
    session.runs.push_back({next_id, count});
    next_id += count;
    TraceRequest request;
    request.time_s = i;
    request.session = session.number;
    uint64_t blocks = 0;
    for (const auto& run : session.runs) blocks += run.count;
    request.input_tokens = static_cast<uint32_t>(blocks * kBlockTokens);
    request.output_tokens = 10;
    // A partly filled last block is another one than what the next turn makes of it.
    auto runs = session.runs;
    if (random() % 4 == 0) {
      runs.push_back({next_id++, 1});
      request.input_tokens += static_cast<uint32_t>(1 + random() % (kBlockTokens - 1));
    }
    EXPECT_TRUE(builder.Add(request, runs).ok());
    if (session.runs.size() > 9) sessions.erase(sessions.end() - 1 - static_cast<int64_t>(back));
  }
  return std::move(builder).Finish();
}

Options RealOptionsFor() {
  Options options;
  options.high_watermark = 0.95;
  options.low_watermark = 0.9;
  options.real.bytes_per_token = 128;
  return options;
}

double BlockRate(const Result& result) {
  return Ratio(double(result.metrics.hit_blocks), double(result.metrics.blocks));
}
double RequestRate(const Result& result) {
  return Ratio(double(result.metrics.hit_requests), double(result.metrics.requests));
}
double TokenRate(const Result& result) {
  return Ratio(double(result.metrics.hit_tokens), double(result.metrics.tokens));
}

void ExpectWithinAPoint(const RealResult& result) {
  EXPECT_NEAR(BlockRate(result.real), BlockRate(result.expected), 0.01);
  EXPECT_NEAR(RequestRate(result.real), RequestRate(result.expected), 0.01);
  EXPECT_NEAR(TokenRate(result.real), TokenRate(result.expected), 0.01);
  EXPECT_EQ(result.counts.wrong_bytes, 0u) << result.counts.first_wrong;
  EXPECT_EQ(result.counts.damaged_pages, 0u);
  EXPECT_EQ(result.counts.short_saves, 0u);
  EXPECT_GT(result.counts.verified_bytes, 0u);
  // Both kinds of blocks are there: kept and evicted ones.
  EXPECT_GT(result.real.metrics.hit_blocks, result.real.metrics.blocks / 20);
  EXPECT_LT(result.real.metrics.hit_blocks, result.real.optimal_hit_blocks);
}

TEST(ReplayReal, HitRatesAreThoseOfTheVirtualRunAndNoByteIsWrong) {
  const Trace trace = MakeTrace(1500, 1);
  for (const RealIdentity identity : {RealIdentity::kTokens, RealIdentity::kHashes}) {
    DaemonHarness daemon({.host_bytes = 3 * kMiB, .host_segment_bytes = 64 * kKiB});
    const auto client = daemon.UnixClient();
    Options options = RealOptionsFor();
    options.real.identity = identity;
    const auto result = ReplayReal(trace, options, client.get(), nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectWithinAPoint(*result);
    // What it saved is gone again.
    EXPECT_TRUE(client->ListSessions({})->empty());
  }
}

TEST(ReplayReal, BothTiersHitAsInTheVirtualRun) {
  const Trace trace = MakeTrace(500, 2);
  DaemonHarness daemon(
      {.host_bytes = 1 * kMiB, .disk_bytes = 8 * kMiB, .host_segment_bytes = 256 * kKiB});
  const auto client = daemon.UnixClient();
  const auto result = ReplayReal(trace, RealOptionsFor(), client.get(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(BlockRate(result->real), BlockRate(result->expected), 0.01);
  EXPECT_NEAR(
      Ratio(double(result->real.metrics.hit_blocks_disk), double(result->real.metrics.blocks)),
      Ratio(double(result->expected.metrics.hit_blocks_disk),
            double(result->expected.metrics.blocks)),
      0.01);
  EXPECT_GT(result->real.metrics.hit_blocks_disk, 0u);
  EXPECT_EQ(result->counts.wrong_bytes, 0u) << result->counts.first_wrong;
}

// A store that hands out one wrong byte: the run goes on, counts it, and says where it was.
TEST(ReplayReal, AWrongByteIsCounted) {
  const Trace trace = MakeTrace(60, 3);
  DaemonHarness daemon({.host_bytes = 16 * kMiB});
  const auto client = daemon.UnixClient();
  HookedKvStore store(client.get());
  int pages = 0;
  store.hooks.after_read_page = [&](std::span<std::byte> page) {
    if (++pages == 100) page[5] ^= std::byte{1};
  };
  const auto result = ReplayReal(trace, RealOptionsFor(), &store, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(pages, 100);
  EXPECT_EQ(result->counts.wrong_bytes, 1u);
  EXPECT_THAT(result->counts.first_wrong, ::testing::HasSubstr("byte 5"));
}

// What the store itself finds damaged is a miss from there on, not a wrong byte.
TEST(ReplayReal, DamageThatTheStoreSeesIsAMiss) {
  const Trace trace = MakeTrace(60, 3);
  DaemonHarness daemon({.host_bytes = 16 * kMiB});
  const auto client = daemon.UnixClient();
  HookedKvStore store(client.get());
  int pages = 0;
  store.hooks.before_read_page = [&](size_t, uint32_t) {
    return ++pages == 100 ? DataLoss("planted") : absl::OkStatus();
  };
  const auto result = ReplayReal(trace, RealOptionsFor(), &store, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->counts.damaged_pages, 1u);
  EXPECT_EQ(result->counts.wrong_bytes, 0u);
  EXPECT_LT(result->real.metrics.hit_blocks, result->expected.metrics.hit_blocks);
}

TEST(ReplayReal, WhatCannotBeSavedIsRefused) {
  testing::DaemonHarness daemon;
  const auto client = daemon.UnixClient();
  Options options = RealOptionsFor();
  const Trace sessions = GenerateConversations({.sessions = 3});
  EXPECT_TRUE(
      absl::IsInvalidArgument(ReplayReal(sessions, options, client.get(), nullptr).status()));
  options.real.bytes_per_token = 6;
  EXPECT_TRUE(absl::IsInvalidArgument(
      ReplayReal(MakeTrace(5, 1), options, client.get(), nullptr).status()));
}

// A slice of the chat trace, scaled to 16 bytes a token.
TEST(ReplayReal, ASliceOfTheChatTraceHitsAsInTheVirtualRun) {
  const std::string path = TURNKEEP_TRACES "/mooncake_conversation.jsonl.gz";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no traces at " TURNKEEP_TRACES;
  Options options = RealOptionsFor();
  options.trace = path;
  options.first_requests = 1200;
  options.real.bytes_per_token = 16;
  const auto trace = LoadTrace(options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  DaemonHarness daemon({.host_bytes = 60 * kMiB, .host_segment_bytes = 1 * kMiB});
  const auto client = daemon.UnixClient();
  const auto result = ReplayReal(*trace, options, client.get(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectWithinAPoint(*result);
}

// The command: the rows of both runs, and exit code 1 for wrong bytes.
TEST(ReplayReal, TheCommandFailsForAWrongByte) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.path() + "/trace.csv";
  std::ofstream(path) << "# block_tokens=32\n"
                      << "0,a,96,1,,1-3\n1,a,160,1,,1-5\n2,b,96,1,,1-3\n";
  DaemonHarness daemon;
  const auto client = daemon.UnixClient();
  HookedKvStore store(client.get());
  std::string out, err;
  Environment environment;
  environment.write_out = [&](std::string_view text) { return out += text, true; };
  environment.write_err = [&](std::string_view text) { err += text; };
  std::string socket;
  environment.connect = [&](const GlobalOptions& global) -> absl::StatusOr<Connection> {
    socket = global.socket;
    return Connection{.store = &store};
  };
  const std::vector<std::string> arguments = {"replay", path,     "--real",
                                              "/run/x", "--json", "--watermarks=0.95:0.9"};
  EXPECT_EQ(RunCommandLine(arguments, environment), 0) << err;
  EXPECT_EQ(socket, "/run/x");
  const auto json = nlohmann::json::parse(out);
  EXPECT_EQ(json["wrong_bytes"], 0);
  EXPECT_GT(json["verified_bytes"], 0);
  EXPECT_NEAR(json["hit_rate_blocks"].get<double>(), 6.0 / 11, 1e-9);
  EXPECT_NEAR(json["virtual_hit_rate_blocks"].get<double>(), 6.0 / 11, 1e-9);
  store.hooks.after_read_page = [](std::span<std::byte> page) { page.front() ^= std::byte{128}; };
  EXPECT_EQ(RunCommandLine(arguments, environment), 1);
  EXPECT_THAT(err, ::testing::HasSubstr("wrong bytes"));
}

}  // namespace
}  // namespace turnkeep::replay
