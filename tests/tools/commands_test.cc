// Every command against a store in memory: what it prints, what it asks for, how it exits.
#include <gmock/gmock.h>

#include "command_fixture.h"

namespace turnkeep::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class Commands : public CommandFixture {};

TEST_F(Commands, ListIsATableForPeople) {
  Save("alice", 40);
  Save("bob", 16);
  const Ran ran = Run({"ls"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(ran.out,
            "SESSION  TOKENS  STORED       KV      HOST  DISK  SHARED  LAST USE  EXPIRES  MODEL\n"
            "alice        40    100%  7.5 KiB  12.0 KiB   0 B     33%  now       never    small\n"
            "bob          16    100%  3.0 KiB   4.0 KiB   0 B    100%  now       never    small\n");
}

TEST_F(Commands, ListFiltersSortsAndLimits) {
  Save("a-small", 10);
  Save("a-large", 90);
  Save("b", 50);
  EXPECT_EQ(Run({"ls", "--names"}).out, "a-large\na-small\nb\n");
  EXPECT_EQ(Run({"ls", "a-", "--names"}).out, "a-large\na-small\n");
  EXPECT_EQ(Run({"ls", "--names", "--sort", "tokens", "--limit", "2"}).out, "a-large\nb\n");
  EXPECT_EQ(Run({"ls", "none"}).out, "no session begins with \"none\"\n");
  EXPECT_EQ(Run({"ls", "--json", "b"}).json()["sessions"][0]["token_count"], 50);
}

TEST_F(Commands, ListReadsEveryPage) {
  Save("s", 16);
  for (int i = 0; i < 2100; ++i) store_.sessions["s" + std::to_string(i)] = store_.sessions["s"];
  EXPECT_EQ(Run({"ls", "--json"}).json()["sessions"].size(), 2101u);
}

TEST_F(Commands, ShowMergesChunksThatAreAlike) {
  Save("alice", 100);
  Save("bob", 32);
  store_.chunks.erase(store_.sessions.at("alice").view[5].chunk);
  const Ran ran = Run({"show", "alice"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("tokens:      100, 80 restorable\n"));
  EXPECT_THAT(ran.out, HasSubstr("0..32    2 chunks"));
  EXPECT_THAT(ran.out, HasSubstr("32..80   3 chunks"));
  EXPECT_THAT(ran.out, HasSubstr("evicted"));
  const std::string every = Run({"show", "alice", "--chunks"}).out;
  const auto lines = [](const std::string& text) {
    return std::count(text.begin(), text.end(), '\n');
  };
  EXPECT_EQ(lines(every), lines(ran.out) + 3);  // 7 chunks instead of 4 runs
  EXPECT_EQ(Run({"show", "alice", "--json"}).json()["spans"].size(), 7u);
}

TEST_F(Commands, ShowTellsPartsOfChunksAndPositions) {
  Save("alice", 40);
  ASSERT_EQ(Run({"truncate", "alice", "--drop", "4:20"}).code, 0);
  const Ran ran = Run({"show", "alice"});
  EXPECT_THAT(ran.out, HasSubstr("alice (truncated)"));
  EXPECT_THAT(ran.out, HasSubstr("0..4 of 16"));
  EXPECT_THAT(ran.out, HasSubstr("4..16 of 16         20"));
}

TEST_F(Commands, UnknownSessionExitsWithMiss) {
  for (const auto& arguments :
       std::vector<std::vector<std::string>>{{"show", "x"},
                                             {"drop", "x"},
                                             {"pin", "x"},
                                             {"unpin", "x"},
                                             {"ttl", "x", "1h"},
                                             {"rename", "x", "y"},
                                             {"fork", "x", "y"},
                                             {"truncate", "x", "--drop", "0:1"},
                                             {"truncate", "x", "--oldest-half"}}) {
    const Ran ran = Run(arguments);
    EXPECT_EQ(ran.code, 3) << arguments[0];
    EXPECT_THAT(ran.err, StartsWith("turnkeep: ")) << arguments[0];
    EXPECT_THAT(ran.err, HasSubstr("\"x\"")) << arguments[0];
    EXPECT_EQ(ran.out, "") << arguments[0];
  }
}

TEST_F(Commands, DropGoesOnAfterAFailure) {
  Save("a", 16);
  Save("b", 16);
  const Ran ran = Run({"drop", "a", "x", "b"});
  EXPECT_EQ(ran.code, 3);
  EXPECT_THAT(store_.sessions, IsEmpty());
  EXPECT_THAT(ran.out, HasSubstr("a "));
  EXPECT_THAT(ran.err, HasSubstr("\"x\""));
}

TEST_F(Commands, TruncateDropsARangeOrTheOldestHalf) {
  Save("alice", 100);
  EXPECT_EQ(Run({"truncate", "alice", "--drop", "10:30"}).code, 0);
  EXPECT_EQ(store_.TokensOf("alice").size(), 80u);
  EXPECT_EQ(Run({"truncate", "alice", "--oldest-half", "--keep-prefix", "4", "--json"})
                .json()["token_count"],
            42);
  const auto tokens = store_.TokensOf("alice");
  EXPECT_EQ(tokens[3], 3u);
  EXPECT_EQ(tokens[4], 62u);
  const Ran refused = Run({"truncate", "alice", "--drop", "0:4", "--generation", "1"});
  EXPECT_EQ(refused.code, 5);
  EXPECT_THAT(refused.err, HasSubstr("generation"));
}

TEST_F(Commands, ForkRenamePinAndTtl) {
  Save("alice", 40);
  EXPECT_EQ(Run({"fork", "alice", "bob", "--tokens", "20"}).code, 0);
  EXPECT_EQ(store_.TokensOf("bob").size(), 20u);
  EXPECT_EQ(Run({"fork", "alice", "bob"}).code, 5);
  EXPECT_EQ(Run({"rename", "bob", "carol"}).code, 0);
  EXPECT_TRUE(store_.sessions.contains("carol"));
  EXPECT_EQ(Run({"pin", "alice", "carol"}).code, 0);
  EXPECT_TRUE(store_.sessions.at("carol").pinned);
  EXPECT_EQ(Run({"unpin", "carol"}).code, 0);
  EXPECT_FALSE(store_.sessions.at("carol").pinned);
  EXPECT_THAT(Run({"ttl", "alice", "2h"}).out, HasSubstr("in 2 h"));
  EXPECT_THAT(Run({"ttl", "alice", "never"}).out, HasSubstr("never"));
}

TEST_F(Commands, ExplainSaysWhatIsMissingAndExitsWithMiss) {
  store_.explanation = {.token_count = 100,
                        .restorable_tokens = 64,
                        .host_bytes = 1 << 20,
                        .disk_bytes = 1 << 21,
                        .predicted_us = 1234,
                        .parts = {{0, 48, Tier::kHost, ""},
                                  {48, 16, Tier::kDisk, ""},
                                  {64, 36, Tier::kNone, "evicted 3 min ago to make room for bob"}},
                        .notes = {"layout differs in rope.rotary_dim: 64 and 128"}};
  const Ran ran = Run({"explain", "alice"});
  EXPECT_EQ(ran.code, 3);
  EXPECT_EQ(store_.last_explain.session, "alice");
  EXPECT_EQ(ran.out,
            "context:    100 tokens\n"
            "restored:   64 tokens (64%)\n"
            "from host:  1.0 MiB\n"
            "from disk:  2.0 MiB\n"
            "predicted:  1.2 ms\n"
            "\n"
            "TOKENS   COUNT  FROM  MISSING BECAUSE\n"
            "0..48       48  host\n"
            "48..64      16  disk\n"
            "64..100     36  miss  evicted 3 min ago to make room for bob\n"
            "\n"
            "note: layout differs in rope.rotary_dim: 64 and 128\n");
  store_.explanation.restorable_tokens = 100;
  EXPECT_EQ(Run({"explain", "alice", "--json"}).code, 0);
}

// By report of an engine; what would be restored is counted without it.
TEST_F(Commands, ExplainNamesTheEnginesThatHoldAPart) {
  store_.explanation = {.token_count = 64,
                        .restorable_tokens = 64,
                        .host_bytes = 1 << 20,
                        .parts = {{0, 64, Tier::kHost, ""}},
                        .gpu = {{.engine = "turnkeep-llama",
                                 .pid = 4711,
                                 .token_count = 48,
                                 .chunk_count = 3,
                                 .bytes = 3 << 20}}};
  const Ran ran = Run({"explain", "alice"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("gpu:        3.0 MiB of 48 tokens in engine \"turnkeep-llama\" "
                                 "(pid 4711), for itself alone\n"));
  const auto json = Run({"explain", "alice", "--json"}).json();
  EXPECT_EQ(json["gpu"][0]["tier"], "gpu");
  EXPECT_EQ(json["gpu"][0]["engine"], "turnkeep-llama");
  EXPECT_EQ(json["gpu"][0]["pid"], 4711);
  EXPECT_EQ(json["gpu"][0]["bytes"], 3 << 20);
}

TEST_F(Commands, ListAndShowTellWhatEnginesHold) {
  Save("alice", 40);
  Save("bob", 16);
  const SessionDetail detail = store_.ShowSession("alice").value();
  store_.gpu = {{detail.spans[0].chunk, 2048}, {detail.spans[1].chunk, 2048}};
  EXPECT_THAT(Run({"ls"}).out, AllOf(HasSubstr("  GPU  "), HasSubstr("4.0 KiB  12.0 KiB")));
  EXPECT_EQ(Run({"ls", "--json", "alice"}).json()["sessions"][0]["gpu_bytes"], 4096);
  EXPECT_THAT(Run({"show", "alice"}).out, HasSubstr("host (gpu)"));
}

TEST_F(Commands, ExplainTakesTokensAndLayouts) {
  Save("alice", 20);
  const std::string tokens = ::testing::TempDir() + "/explain_tokens.json";
  FILE* file = std::fopen(tokens.c_str(), "w");
  std::fputs("[5, 6, 7]", file);
  std::fclose(file);
  EXPECT_EQ(Run({"explain", "--tokens", tokens}).code, 0);
  EXPECT_THAT(store_.last_explain_tokens, ElementsAre(5u, 6u, 7u));
  EXPECT_TRUE(store_.last_explain.layout.IsZero());
  EXPECT_EQ(Run({"explain", "--tokens", tokens, "--layout", layout_.ShortHex()}).code, 0);
  EXPECT_EQ(store_.last_explain.layout, layout_);
  const Ran ran = Run({"explain", "--tokens", tokens, "--layout", "nothing"});
  EXPECT_EQ(ran.code, 2);
  EXPECT_THAT(ran.err, HasSubstr("--layout: \"nothing\""));
  std::remove(tokens.c_str());
}

TEST_F(Commands, TreeIsDrawn) {
  const auto node = [&](uint32_t depth, uint64_t begin, uint64_t tokens, uint32_t sessions,
                        std::vector<std::string> ends) {
    return TreeNode{.depth = depth,
                    .token_begin = begin,
                    .token_count = tokens,
                    .chunk_count = tokens / 16,
                    .host_bytes = tokens * 64,
                    .session_count = sessions,
                    .ends_here = std::move(ends),
                    .layout = layout_};
  };
  store_.tree = {node(0, 0, 64, 3, {}), node(1, 64, 16, 1, {"a"}), node(1, 64, 32, 2, {"b"}),
                 node(2, 96, 16, 1, {"c"}), node(0, 0, 16, 1, {"d"})};
  store_.tree.back().host_bytes = 0;
  const Ran ran = Run({"tree"});
  EXPECT_EQ(ran.out, "layout " + layout_.ShortHex() +
                         "  small\n"
                         "├─ 0..64  64 tokens in 4 chunks, host 4.0 KiB, 3 sessions\n"
                         "│  ├─ 64..80  16 tokens in 1 chunk, host 1.0 KiB, 1 session  <- a\n"
                         "│  └─ 64..96  32 tokens in 2 chunks, host 2.0 KiB, 2 sessions  <- b\n"
                         "│     └─ 96..112  16 tokens in 1 chunk, host 1.0 KiB, 1 session  <- c\n"
                         "└─ 0..16  16 tokens in 1 chunk, not stored, 1 session  <- d\n");
  EXPECT_EQ(Run({"tree", "--max-nodes", "5"}).err,
            "turnkeep: the tree was cut at 5 runs; --max-nodes shows more\n");
}

TEST_F(Commands, VerifyExitsWithOneOnDamage) {
  store_.verify_report = {.chunks_checked = 1000, .bytes_checked = 1 << 20};
  EXPECT_EQ(Run({"verify"}).code, 0);
  EXPECT_THAT(ran_.out, HasSubstr("damaged:  none"));
  store_.verify_report.disk_copies_damaged = 1;
  store_.verify_report.problems = {"chunk 0a1b: layer 3 on disk"};
  EXPECT_EQ(Run({"verify"}).code, 1);
  EXPECT_THAT(ran_.out, HasSubstr("chunk 0a1b: layer 3 on disk"));
  EXPECT_THAT(ran_.out, HasSubstr("--repair"));
  store_.verify_report.copies_dropped = 1;
  EXPECT_EQ(Run({"verify", "--repair"}).code, 1);
  EXPECT_THAT(ran_.out, HasSubstr("dropped:  1 copies"));
}

TEST_F(Commands, StatusShowsTiersAndWarnings) {
  store_.status = {.version = "0.1.0",
                   .durability = "write",
                   .policy = "lru",
                   .uptime_s = 7500,
                   .session_count = 3,
                   .chunk_count = 4096,
                   .host = {.capacity_bytes = 1 << 30,
                            .used_bytes = 1 << 29,
                            .chunk_count = 4096,
                            .description = "memfd"},
                   .warnings = {"no io_uring here, reads use threads"},
                   .counts = {{"hits_total", "tier=\"host\"", "Hits", 12, true}},
                   .histograms = {{"save_seconds", "Saves", {0.1}, {2, 0}, 0.02}}};
  const Ran ran = Run({"status"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_THAT(ran.out, HasSubstr("daemon:        /run/tk.sock, tenant default, shared memory\n"));
  EXPECT_THAT(ran.out, HasSubstr("uptime:        2 h 5 min\n"));
  EXPECT_THAT(ran.out,
              HasSubstr("host  512.0 MiB       0 B  1.0 GiB   50%     0 B   4,096  memfd"));
  EXPECT_THAT(ran.out, Not(HasSubstr("\ndisk ")));
  EXPECT_THAT(ran.out, HasSubstr("warning: no io_uring here, reads use threads\n"));
  EXPECT_THAT(ran.out, Not(HasSubstr("hits_total")));
  const std::string counters = Run({"status", "--counters"}).out;
  EXPECT_THAT(counters, HasSubstr("hits_total{tier=\"host\"}     12  Hits"));
  EXPECT_THAT(counters, HasSubstr("save_seconds      2  10 ms  Saves"));
}

TEST_F(Commands, TopShowsRatesOfWhatMoved) {
  Save("alice", 16);
  store_.status.counts = {{"saved_bytes_total", "", "", 1000, true}, {"gauge", "", "", 5, false}};
  on_sleep_ = [&] {
    store_.status.counts[0].value += 4096;
    store_.status.counts[1].value += 1;
  };
  const Ran ran = Run({"top", "--count", "2", "--interval", "2"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(sleeps_, 1);
  EXPECT_THAT(ran.out, HasSubstr("saved_bytes_total     2.0 KiB\n"));
  EXPECT_THAT(ran.out, Not(HasSubstr("gauge")));
  EXPECT_THAT(ran.out, HasSubstr("alice"));
  EXPECT_THAT(ran.out, Not(HasSubstr("\x1b")));
}

TEST_F(Commands, TopOnATerminalRedrawsAndOnceEnds) {
  environment_.out_is_terminal = true;
  EXPECT_THAT(Run({"top", "--count", "1"}).out, StartsWith("\x1b[H\x1b[J"));
  EXPECT_THAT(Run({"top", "--once"}).out, Not(HasSubstr("\x1b[H")));
  EXPECT_EQ(sleeps_, 0);
}

TEST_F(Commands, TopEndsQuietlyWhenNobodyReads) {
  pipe_closed_ = true;
  const Ran ran = Run({"top"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err, "");
}

TEST_F(Commands, TopPrintsOneJsonObjectALine) {
  const Ran ran = Run({"top", "--json", "--count", "3"});
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 3);
}

TEST_F(Commands, WithoutADaemonExitsWithFourAndSaysWhatToStart) {
  connect_status_ = Unavailable("no daemon answers at /x; start one with: turnkeepd");
  for (const char* command : {"status", "ls", "tree", "verify", "top"}) {
    const Ran ran = Run({command});
    EXPECT_EQ(ran.code, 4) << command;
    EXPECT_THAT(ran.err, HasSubstr("start one with: turnkeepd")) << command;
  }
}

TEST_F(Commands, GlobalOptionsWorkBeforeAndAfterTheCommand) {
  EXPECT_EQ(Run({"--socket", "/s", "--timeout", "2m", "ls", "--json"}).code, 0);
  EXPECT_EQ(connected_with_.socket, "/s");
  EXPECT_EQ(connected_with_.timeout, absl::Minutes(2));
  EXPECT_TRUE(connected_with_.json);
  EXPECT_EQ(Run({"ls", "--dir", "/d"}).code, 0);
  EXPECT_EQ(connected_with_.dir, "/d");
}

TEST_F(Commands, UsageErrorsNameTheFieldAndTheValue) {
  Save("alice", 40);
  struct Case {
    std::vector<std::string> arguments;
    std::vector<const char*> named;
  };
  const Case cases[] = {
      {{}, {"subcommand", "turnkeep --help"}},
      {{"frobnicate"}, {"frobnicate"}},
      {{"ls", "--sort", "size"}, {"--sort", "size"}},
      {{"ls", "--limit", "many"}, {"--limit", "many"}},
      {{"ls", "--limit", "-5"}, {"--limit", "-5"}},
      {{"fork", "alice", "bob", "--tokens", "-1"}, {"--tokens", "-1"}},
      {{"truncate", "alice", "--oldest-half", "--keep-prefix", "-4"}, {"--keep-prefix", "-4"}},
      {{"hint", "prefetch", "alice", "--max-tokens", "-1"}, {"--max-tokens", "-1"}},
      {{"ls", "--unknown"}, {"--unknown", "turnkeep ls --help"}},
      {{"show"}, {"session"}},
      {{"tree", "--max-nodes", "0"}, {"--max-nodes", "0"}},
      {{"top", "--interval", "0"}, {"--interval", "0"}},
      {{"ls", "--timeout", "soon"}, {"--timeout", "soon"}},
      {{"ls", "--timeout", "0s"}, {"--timeout", "0s"}},
      {{"explain"}, {"SESSION", "--tokens"}},
      {{"hint"}, {"ACTION", "--queue", "--file"}},
      {{"hint", "warm", "alice"}, {"ACTION", "warm", "drop_soon"}},
      {{"hint", "expect", "alice", "--stop", "boredom"}, {"--stop", "boredom"}},
      {{"hint", "expect", "alice", "--in", "soon"}, {"--in", "soon"}},
      {{"hint", "retain", "alice", "--ttl", "x"}, {"--ttl", "x"}},
      {{"hint", "--file", "/nowhere/h.json"}, {"--file", "/nowhere/h.json"}},
      {{"ttl", "alice", "later"}, {"DURATION", "later"}},
      {{"truncate", "alice"}, {"--drop", "--oldest-half"}},
      {{"truncate", "alice", "--drop", "5"}, {"--drop", "\"5\""}},
      {{"truncate", "alice", "--drop", "9:3"}, {"--drop", "9:3"}},
      {{"truncate", "alice", "--drop", "-1:3"}, {"--drop", "-1:3"}},
      {{"truncate", "alice", "--drop", "1:99999999999999999999"},
       {"--drop", "99999999999999999999"}},
      {{"truncate", "alice", "--drop", "1:2", "--oldest-half"}, {"--drop", "--oldest-half"}},
      {{"truncate", "alice", "--drop", "1:2", "--keep-prefix", "3"}, {"--keep-prefix", "3"}},
      {{"truncate", "alice", "--oldest-half", "--keep-prefix", "40"}, {"--keep-prefix", "40"}},
      {{"import", "/nowhere/x.tks"}, {"/nowhere/x.tks", "No such file"}},
      {{"export", "alice", "/nowhere/x.tks"}, {"/nowhere/x.tks", "No such file"}},
      {{"fsck", "/nowhere"}, {"DIR", "/nowhere"}},
      {{"completion", "fish"}, {"fish"}},
  };
  for (const Case& one : cases) {
    const Ran ran = Run(one.arguments);
    const std::string shown = ::testing::PrintToString(one.arguments);
    EXPECT_EQ(ran.code, 2) << shown;
    EXPECT_EQ(ran.out, "") << shown;
    for (const char* name : one.named) EXPECT_THAT(ran.err, HasSubstr(name)) << shown;
  }
  EXPECT_EQ(store_.TokensOf("alice").size(), 40u);
}

TEST_F(Commands, HelpOfEveryCommandHasExamples) {
  CommandLine line;
  AddAllCommands(line);
  EXPECT_THAT(Run({"--help"}).out, HasSubstr("Exit codes:"));
  for (const CLI::App* command : line.app.get_subcommands([](const CLI::App*) { return true; })) {
    const Ran ran = Run({command->get_name(), "--help"});
    EXPECT_EQ(ran.code, 0) << command->get_name();
    EXPECT_THAT(ran.out, HasSubstr("Examples:\n  ")) << command->get_name();
    EXPECT_THAT(ran.out, HasSubstr("turnkeep " + command->get_name())) << command->get_name();
    EXPECT_THAT(Run({"--help"}).out, HasSubstr(command->get_name()));
  }
  EXPECT_THAT(Run({"--help"}).out, HasSubstr("Usage: turnkeep [OPTIONS]"));
  EXPECT_THAT(Run({"ls", "--help"}).out, HasSubstr("Usage: turnkeep ls [OPTIONS]"));
  EXPECT_THAT(Run({"completion", "bash", "--help"}).out,
              HasSubstr("Usage: turnkeep completion bash [OPTIONS]"));
  EXPECT_THAT(Run({"--version"}).out, StartsWith("turnkeep 0."));
}

TEST_F(Commands, ExportAndImportGoThroughAFile) {
  Save("alice", 40);
  const std::string path = ::testing::TempDir() + "/commands_test_alice.tks";
  std::remove(path.c_str());
  ASSERT_EQ(Run({"export", "alice", path, "--json"}).code, 0) << ran_.err;
  EXPECT_EQ(ran_.json()["token_count"], 40);
  EXPECT_EQ(Run({"export", "alice", path}).code, 5);
  EXPECT_THAT(ran_.err, HasSubstr("--force"));
  EXPECT_EQ(Run({"export", "alice", path, "--force"}).code, 0);
  EXPECT_EQ(Run({"import", path}).code, 5);  // the name is taken
  EXPECT_EQ(Run({"import", path, "--as", "bob"}).code, 0) << ran_.err;
  EXPECT_EQ(store_.TokensOf("bob"), store_.TokensOf("alice"));
  connect_status_ = Unavailable("away");
  EXPECT_EQ(Run({"import", path, "--check"}).code, 0);
  EXPECT_THAT(ran_.out, HasSubstr("verdict:   whole"));

  FILE* file = std::fopen(path.c_str(), "r+b");
  std::fseek(file, -200, SEEK_END);
  std::fputc(std::fgetc(file) ^ 1, file);
  std::fclose(file);
  EXPECT_EQ(Run({"import", path, "--check"}).code, 1);
  EXPECT_THAT(ran_.err, HasSubstr("session file byte"));
  std::remove(path.c_str());
}

TEST_F(Commands, ExportOfAMissingSessionLeavesNoFile) {
  const std::string path = ::testing::TempDir() + "/commands_test_none.tks";
  EXPECT_EQ(Run({"export", "nobody", path}).code, 3);
  EXPECT_EQ(std::fopen(path.c_str(), "rb"), nullptr);
}

TEST_F(Commands, SessionNamesCannotSteerTheTerminal) {
  Save("alice", 16);
  store_.sessions["evil\x1b[2J"] = store_.sessions["alice"];
  EXPECT_THAT(Run({"ls"}).out, Not(HasSubstr("\x1b")));
}

}  // namespace
}  // namespace turnkeep::testing
