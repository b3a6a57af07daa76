// What `turnkeep bench attention` prints, and the shapes it measures. No figure is judged but the
// error.
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include <gmock/gmock.h>

#include "attention_bench.h"
#include "command_fixture.h"
#include "core/status.h"
#include "cuda_bench.h"

namespace turnkeep::testing {
namespace {

using ::testing::HasSubstr;

class BenchAttention : public CommandFixture {};

TEST_F(BenchAttention, RowsCarryTheKeysThatArePromised) {
  const Ran ran = Run({"bench", "attention", "--shapes", "random", "--filter", "random-1-1-",
                       "--rounds", "1", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto json = ran.json();
  std::set<std::string> planners;
  for (const auto& row : json.at("rows")) {
    planners.insert(row.at("planner"));
    for (const char* key : {"us", "planning_us", "speedup", "speedup_low", "floor_us", "share",
                            "share_low", "share_high", "machine_bound", "rounds"})
      EXPECT_GT(row.at(key).get<double>(), 0) << key;
    EXPECT_GT(row.at("bytes_unique").get<uint64_t>(), 0u);
    EXPECT_EQ(row.at("device"), "cpu");
    EXPECT_THAT(row.at("shape").get<std::string>(), HasSubstr("random-1-"));
    EXPECT_LT(row.at("error").get<double>(), 1e-4);
    for (const char* key : {"replan_us", "step_us"}) EXPECT_GE(row.at(key).get<double>(), 0) << key;
  }
  EXPECT_GT(json.at("auto_worst").at("speedup").get<double>(), 0);
  EXPECT_EQ(json.at("auto_verdict").at("shapes"), 1u);
  EXPECT_EQ(planners,
            (std::set<std::string>{"per_sequence", "two_phase", "relay", "flatten_tree", "auto"}));
}

TEST_F(BenchAttention, UnknownNamesAreRefusedWithTheOnesThereAre) {
  EXPECT_THAT(Run({"bench", "attention", "--shapes", "all"}).err, HasSubstr("chunkattention"));
  EXPECT_THAT(Run({"bench", "attention", "--filter", "p9"}).err, HasSubstr("contains 'p9'"));
  EXPECT_THAT(Run({"bench", "attention", "--planner", "best"}).err, HasSubstr("two_phase"));
  EXPECT_THAT(Run({"bench", "attention", "--device", "tpu"}).err, HasSubstr("cpu"));
}

// Where CUDA sees a device these run there; elsewhere they say what is missing and measure nothing.
TEST_F(BenchAttention, CudaRunsOrSaysWhatIsMissing) {
  for (const std::vector<std::string>& bench :
       {std::vector<std::string>{"attention", "--shapes", "random", "--rounds", "1"},
        std::vector<std::string>{"gather", "--mebibytes", "8", "--rounds", "1"},
        std::vector<std::string>{"overlap", "--layers", "2", "--tokens", "64", "--rounds", "1"}}) {
    std::vector<std::string> arguments = {"bench"};
    arguments.insert(arguments.end(), bench.begin(), bench.end());
    arguments.insert(arguments.end(), {"--device", "cuda", "--json"});
    const Ran ran = Run(arguments);
    if (bench::CudaIsThere().ok()) {
      ASSERT_EQ(ran.code, 0) << ran.err;
      EXPECT_FALSE(ran.json().at("rows").empty());
      continue;
    }
    EXPECT_NE(ran.code, 0);
    EXPECT_THAT(ran.err, ::testing::AnyOf(HasSubstr("CUDA sees no device"),
                                          HasSubstr("was built without CUDA")));
    EXPECT_EQ(ran.out, "");
  }
}

// Ranks of the median's 95% interval from a table of the binomial distribution, one further at
// most.
TEST(AttentionRatios, HaveTheIntervalOfTheirMedian) {
  const auto ranks = [](size_t count) {
    std::vector<double> ratios(count);
    std::iota(ratios.begin(), ratios.end(), 1.0);
    std::swap(ratios.front(), ratios.back());  // in any order
    return bench::IntervalOf(std::move(ratios));
  };
  EXPECT_EQ(ranks(101).median, 51);
  EXPECT_THAT(ranks(101).low, ::testing::AllOf(::testing::Ge(40), ::testing::Le(41)));
  EXPECT_THAT(ranks(101).high, ::testing::AllOf(::testing::Ge(61), ::testing::Le(63)));
  EXPECT_EQ(ranks(3).low, 1);
  EXPECT_EQ(ranks(3).high, 3);
  EXPECT_EQ(bench::IntervalOf({}).median, 0);
}

TEST(AttentionRatios, TellALossFromWhatMayBeNoise) {
  const auto row = [](const std::string& planner, double low, double high) {
    return bench::AttentionRow{.planner = planner, .speedup_low = low, .speedup_high = high};
  };
  const bench::AutoVerdict verdict =
      bench::JudgeAuto({row("auto", 0.9, 0.97), row("auto", 0.97, 1.1), row("auto", 0.99, 1.1),
                        row("auto", 2, 3), row("relay", 0.1, 0.2)},
                       0.98);
  EXPECT_EQ(verdict.shapes, 4u);
  EXPECT_EQ(verdict.slower, 1u);
  EXPECT_EQ(verdict.undecided, 1u);
}

// A shape's nodes, tokens, sequences and Σ of the sequences' path tokens.
struct Sums {
  uint32_t tokens = 0;
  uint32_t sequences = 0;
  uint64_t path_tokens = 0;
};
Sums SumsOf(const bench::AttentionCaseSpec& spec) {
  Sums sums;
  std::vector<uint32_t> path;
  for (const bench::AttentionNode& node : spec.nodes) {
    path.push_back(node.tokens + (node.parent < 0 ? 0 : path[static_cast<size_t>(node.parent)]));
    sums.tokens += node.tokens;
    sums.sequences += node.sequences;
    sums.path_tokens += uint64_t{path.back()} * node.sequences;
  }
  return sums;
}

bench::AttentionCaseSpec ShapeOf(const std::string& set, const std::string& name,
                                 const std::string& trees = "") {
  const auto made = bench::MakeAttentionShapes({.set = set, .trees = trees});
  EXPECT_TRUE(made.ok()) << made.status();
  for (const auto& spec : made->cases)
    if (spec.shape == name) return spec;
  ADD_FAILURE() << "no shape " << name;
  return {};
}

TEST(AttentionShapes, HoldWhatTheirNamesSay) {
  const Sums shared = SumsOf(ShapeOf("chunkattention", "p1024-s1024"));
  EXPECT_EQ(shared.tokens, 1024u + 32);
  EXPECT_EQ(shared.sequences, 32u);
  EXPECT_EQ(shared.path_tokens, 32u * 1025);
  const Sums apart = SumsOf(ShapeOf("chunkattention", "p4096-s0"));
  EXPECT_EQ(apart.tokens, 32u * 4097);
  EXPECT_EQ(apart.path_tokens, apart.tokens);
  const Sums relay = SumsOf(ShapeOf("relay", "s1024-c128-b16"));
  EXPECT_EQ(relay.tokens, 1024u + 16 * 128);
  EXPECT_EQ(relay.path_tokens, 16u * (1024 + 128));
  const Sums tree = SumsOf(ShapeOf("pat", "1,8,64_512,128,32-h16/2"));
  EXPECT_EQ(tree.tokens, 512u + 8 * 128 + 64 * 32);
  EXPECT_EQ(tree.path_tokens, 64u * (512 + 128 + 32));
  EXPECT_EQ(bench::MakeAttentionShapes({.set = "pat"})->cases.size(), 80u);
  EXPECT_EQ(bench::MakeAttentionShapes({.set = "relay"})->cases.size(), 9u * 2 * 8);
}

TEST(AttentionShapes, TheRandomSetCoversTheContract) {
  std::set<DType> types;
  std::set<uint32_t> groups, dims, queries;
  bool drafts = false;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const auto set = bench::MakeAttentionShapes({.set = "random", .seed = seed});
    ASSERT_TRUE(set.ok()) << set.status();
    for (const auto& spec : set->cases) {
      types.insert(spec.dtype);
      groups.insert(spec.query_heads / spec.kv_heads);
      dims.insert(spec.head_dim);
      for (const auto& node : spec.nodes) queries.insert(node.query_tokens);
      drafts |= spec.shape.find("-tree") != std::string::npos;
    }
  }
  EXPECT_EQ(types.size(), 3u);
  EXPECT_EQ(groups, (std::set<uint32_t>{1, 2, 4, 8, 16, 32, 64}));
  EXPECT_THAT(dims, ::testing::IsSupersetOf({64u, 128u, 256u}));
  EXPECT_THAT(queries, ::testing::IsSupersetOf({1u, 2u, 8u}));
  EXPECT_TRUE(drafts);
}

TEST(AttentionShapes, TreesAreReadFromFilesAndDamageIsNamed) {
  const std::filesystem::path folder = std::filesystem::path(::testing::TempDir()) / "deft_trees";
  std::filesystem::create_directories(folder);
  // A file that is not compressed is read as it is.
  const auto write = [&](const std::string& text) {
    std::ofstream(folder / "deft_set128ToT.json.gz") << text;
  };
  write(R"([{"data":{"0":{"value":7,"children":[1,2]},"1":{"value":3,"children":[]},
          "2":{"value":5,"children":[]}}}])");
  const Sums toy = SumsOf(ShapeOf("deft", "set128ToT-0-h8/2", folder));
  EXPECT_EQ(toy.tokens, 15u);
  EXPECT_EQ(toy.sequences, 2u);
  EXPECT_EQ(toy.path_tokens, 7u + 3 + 7 + 5);
  for (const char* damaged : {"{", R"([{"data":{"0":{"value":7,"children":[9]}}}])"}) {
    write(damaged);
    const auto made = bench::MakeAttentionShapes({.set = "deft", .trees = folder});
    EXPECT_THAT(MessageOf(made.status()), HasSubstr("set128ToT"));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace turnkeep::testing
