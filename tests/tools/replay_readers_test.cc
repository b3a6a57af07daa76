// The trace formats: what is read, and what is refused with which words.
#include <cstdio>
#include <fstream>

#include <gtest/gtest.h>
#include <zlib.h>

#include "core/status.h"
#include "line_reader.h"
#include "readers.h"

namespace turnkeep::replay {
namespace {

class ReplayReaders : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const std::string& path : made_) std::remove(path.c_str());
  }

  std::string Write(const std::string& name, const std::string& text) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    const std::string path = ::testing::TempDir() + "/replay_" + test->name() + "_" + name;
    std::ofstream(path) << text;
    made_.push_back(path);
    return path;
  }

  std::vector<std::string> made_;
};

constexpr const char* kMooncake =
    R"({"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]})"
    "\n"
    R"({"timestamp": 3000, "input_length": 1100, "output_length": 9, "hash_ids": [0, 7, 8]})"
    "\n"
    R"({"timestamp": 6000, "input_length": 2000, "output_length": 1, "hash_ids": [0, 1, 2, 9]})"
    "\n";

TEST_F(ReplayReaders, MooncakeLinesBecomeRequestsAndRecoveredSessions) {
  const auto trace = ReadTrace(Write("a.jsonl", kMooncake), "auto", {});
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 3u);
  EXPECT_EQ(trace->block_tokens, 512u);
  EXPECT_EQ(trace->block_count, 6u);
  EXPECT_EQ(trace->reference_count, 10u);
  EXPECT_EQ(trace->requests[2].time_s, 6.0);
  EXPECT_EQ(trace->requests[2].session, trace->requests[0].session);
  EXPECT_NE(trace->requests[1].session, trace->requests[0].session);
  EXPECT_EQ(trace->requests[2].turn, 1u);
  EXPECT_EQ(trace->requests[0].next_turn, 2u);
}

TEST_F(ReplayReaders, GzipIsReadLikePlainTextAndACutFileIsRefused) {
  const std::string path = Write("a.gz", "");
  gzFile file = gzopen(path.c_str(), "wb");
  for (int i = 0; i < 20000; ++i) gzputs(file, kMooncake);
  gzclose(file);
  const auto trace = ReadTrace(path, "auto", {});
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests.size(), 60000u);
  std::string bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  const auto cut = ReadTrace(Write("cut.gz", bytes.substr(0, bytes.size() / 2)), "mooncake", {});
  ASSERT_FALSE(cut.ok());
  EXPECT_NE(MessageOf(cut.status()).find("cut.gz"), std::string::npos) << cut.status();
}

constexpr const char* kAgent =
    R"({"id":"a","block_size":64,"requests":[)"
    R"({"t":0.0,"type":"s","in":200,"out":5,"hash_runs":[1,3],"stop":"tool_use","api_time":2.5},)"
    R"({"t":4.0,"type":"subagent","requests":[)"
    R"({"t":1.0,"type":"n","in":130,"out":5,"hash_runs":[1,2],"stop":"end_turn"}]},)"
    R"({"t":9.0,"type":"n","in":330,"out":5,"hash_runs":[1,2,7,3],"stop":"end_turn"}]})"
    "\n";

TEST_F(ReplayReaders, AgentSessionsBringSubAgentsAndIdsOfTheirOwn) {
  ReadOptions options;
  options.starts = {.rule = SessionStarts::Rule::kEvery, .per_second = 0.01, .file = ""};
  const auto trace = ReadTrace(Write("a.jsonl", std::string(kAgent) + kAgent), "auto", options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 6u);
  EXPECT_EQ(trace->session_count, 4u);
  EXPECT_EQ(trace->block_tokens, 64u);
  EXPECT_EQ(trace->block_count, 12u) << "the second session shares nothing with the first";
  EXPECT_EQ(trace->requests[1].time_s, 5.0) << "a sub-agent's times are from its own start";
  EXPECT_EQ(trace->requests[1].block_count, 2u);
  EXPECT_EQ(trace->requests[0].stop, StopReason::kToolUse);
  EXPECT_EQ(trace->requests[0].service_s, 2.5);
  EXPECT_EQ(trace->requests[3].time_s, 100.0);
  const auto runs = trace->RunsOf(trace->requests[2]);
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].count, 2u);
  EXPECT_EQ(runs[1].first, 3u);
}

TEST_F(ReplayReaders, AUserBeginsASessionWhenTheLastHasEnded) {
  ReadOptions options;
  options.starts = {.rule = SessionStarts::Rule::kUsers, .file = "", .users = 2};
  const std::string path = Write("a.jsonl", std::string(kAgent) + kAgent + kAgent + kAgent);
  const auto trace = ReadTrace(path, "auto", options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  std::vector<double> starts;
  for (const TraceRequest& request : trace->requests) {
    if (request.stop == StopReason::kToolUse) starts.push_back(request.time_s);
  }
  EXPECT_EQ(starts, (std::vector<double>{0, 0, 9, 9}));
}

TEST_F(ReplayReaders, ABlockWithAnotherParentIsAnotherBlock) {
  const auto trace = ReadTrace(Write("a.csv",
                                     "# block_tokens=10\n"
                                     "time_s,session,input_tokens,output_tokens,stop,blocks\n"
                                     "0,a,30,1,stop,1-3\n"
                                     "1,a,30,1,stop,1 9 3\n"
                                     "2,a,30,1,stop,1 9 3\n"
                                     "3,b,20,1,stop,5 5\n"),
                               "auto", {});
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->block_count, 7u) << "1 2 3, 9, 3 after 9, 5, 5 after 5";
  EXPECT_EQ(trace->RunsOf(trace->requests[1]).back().first,
            trace->RunsOf(trace->requests[2]).back().first);
}

TEST_F(ReplayReaders, AzureGivesArrivalsAcrossMidnight) {
  const std::string path = Write("a.csv",
                                 "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                 "2024-02-28 23:59:59.5000000,1024,44\n"
                                 "2024-02-29 00:00:01.0,2,109\n"
                                 "2024-03-01 00:00:01.0,2,1\n");
  const auto trace = ReadTrace(path, "auto", {});
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests[1].time_s, 1.5);
  EXPECT_EQ(trace->requests[2].time_s, 86401.5);
  EXPECT_EQ(trace->requests[0].block_count, 2u);
  const auto arrivals = ReadArrivals(path);
  ASSERT_TRUE(arrivals.ok());
  EXPECT_EQ(arrivals->at(1), 1.5);
}

TEST_F(ReplayReaders, MalformedLinesAreNamedOrSkippedAndCounted) {
  struct Case {
    const char* format;
    std::string good;
    std::string bad;
    const char* what;
  };
  const std::string mooncake(kMooncake, std::string(kMooncake).find('\n'));
  const std::string agent(kAgent, std::string(kAgent).size() - 1);
  const Case cases[] = {
      {"mooncake", mooncake, "{", "no JSON"},
      {"mooncake", mooncake, "[]", "no JSON object"},
      {"mooncake", mooncake, R"({"timestamp": 1})", "\"input_length\" is missing"},
      {"mooncake", mooncake,
       R"({"timestamp":-1,"input_length":1,"output_length":1,"hash_ids":[1]})", "timestamp"},
      {"mooncake", mooncake,
       R"({"timestamp":1,"input_length":512,"output_length":1,"hash_ids":[1,2]})", "hash_ids"},
      {"mooncake", mooncake,
       R"({"timestamp":1,"input_length":600,"output_length":1,"hash_ids":[1,-2]})", "hash_ids"},
      {"agent", agent, R"({"block_size":0,"requests":[]})", "block_size"},
      {"agent", agent, R"({"block_size":32,"requests":[]})", "block_size"},
      {"agent", agent, R"({"block_size":64})", "\"requests\" is missing"},
      {"agent", agent, R"({"block_size":64,"requests":[{"t":0,"in":64,"out":1,"hash_runs":[1]}]})",
       "requests[0]: \"hash_runs\" has an odd length"},
      {"agent", agent,
       R"({"block_size":64,"requests":[{"t":0,"in":64,"out":1,"hash_runs":[1,999999999]}]})",
       "more blocks"},
      {"azure", "2024-02-28 23:59:59.5,1024,44", "2024-13-28 23:59:59.5,1024,44", "is no time"},
      {"azure", "2024-02-28 23:59:59.5,1024,44", "2024-02-28 23:59:59.5,1024", "2 cells"},
      {"azure", "2024-02-28 23:59:59.5,1024,44", "2024-02-28 23:59:59.5,x,1", "ContextTokens"},
      {"csv", "0,a,1024,1,stop,1-2", "0,a,1024,1,stop", "5 cells"},
      {"csv", "0,a,1024,1,stop,1-2", "0,a,1024,1,stop,1-3", "3 blocks of 512"},
      {"csv", "0,a,1024,1,stop,1-2", "0,a,1024,1,stop,3-2", "backwards"},
      {"csv", "0,a,1024,1,stop,1-2", "nan,a,1024,1,stop,3", "time_s"},
  };
  for (const Case& c : cases) {
    const std::string path = Write("c", c.good + "\n" + c.bad + "\n" + c.good + "\n");
    const auto refused = ReadTrace(path, c.format, {});
    ASSERT_FALSE(refused.ok()) << c.bad;
    const std::string message = MessageOf(refused.status());
    EXPECT_NE(message.find(path + ":2: "), std::string::npos) << message;
    EXPECT_NE(message.find(c.what), std::string::npos) << message << " for " << c.bad;
    const auto skipped = ReadTrace(path, c.format, {.skip_bad = true});
    ASSERT_TRUE(skipped.ok()) << skipped.status();
    EXPECT_EQ(skipped->bad_lines, 1u) << c.bad;
    EXPECT_GE(skipped->requests.size(), 2u) << c.bad;
  }
}

TEST_F(ReplayReaders, FilesThatAreMissingEmptyOrUnknownAreRefused) {
  EXPECT_FALSE(ReadTrace("/nowhere/x", "auto", {}).ok());
  EXPECT_FALSE(ReadTrace(Write("e", ""), "auto", {}).ok());
  EXPECT_FALSE(ReadTrace(Write("u", "hello\n"), "auto", {}).ok());
  EXPECT_FALSE(ReadTrace(Write("m", kMooncake), "parquet", {}).ok());
}

TEST_F(ReplayReaders, RegroupedChunksAreWholeGroupsOfBlocks) {
  const auto trace = ReadTrace(
      Write("a.csv", "# block_tokens=10\n0,a,50,1,stop,1-5\n1,a,50,1,stop,1-3 9 10\n"), "csv", {});
  ASSERT_TRUE(trace.ok()) << trace.status();
  const Trace grouped = Regroup(*trace, 20);
  EXPECT_EQ(grouped.block_tokens, 20u);
  EXPECT_EQ(grouped.requests[0].block_count, 2u);
  EXPECT_EQ(grouped.requests[1].block_count, 2u);
  EXPECT_EQ(grouped.block_count, 3u) << "blocks 1-2 are shared, 3-4 and 3,9 are not";
}

}  // namespace
}  // namespace turnkeep::replay
