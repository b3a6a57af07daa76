// The engine alone, without a store: the golden tokens, and that a token's KV and
// logits do not depend on the batch that they are computed in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "llama/engine.h"
#include "llama/tokenizer.h"
#include "regression/llama_testing.h"

namespace turnkeep::llama {
namespace {

using testing::GoldenTokens;
using testing::LoadStories;
using testing::RandomModel;
using testing::RandomTokens;
using testing::SharedModel;
using testing::TestSeed;

std::unique_ptr<Engine> MakeEngine(const Model& model, uint32_t threads = 2) {
  auto engine = Engine::Create(&model, {.threads = threads});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return std::move(*engine);
}

std::unique_ptr<PagedKvCache> MakeCache(const Engine& engine, Engine::CacheOptions options = {}) {
  auto cache = engine.NewCache(options);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return std::move(*cache);
}

// Everything that a run of `tokens`, cut into `pieces`, leaves behind: the logits after
// the last token, and all KV.
struct Outcome {
  std::vector<float> logits;
  std::vector<std::byte> kv;

  bool SameBits(const Outcome& other) const {
    return logits.size() == other.logits.size() && kv == other.kv &&
           std::memcmp(logits.data(), other.logits.data(), logits.size() * sizeof(float)) == 0;
  }
};

Outcome RunInPieces(Engine* engine, const Engine::CacheOptions& options,
                    std::span<const uint32_t> tokens, const std::vector<size_t>& pieces) {
  const auto cache = MakeCache(*engine, options);
  Sequence sequence(cache.get());
  Outcome outcome;
  outcome.logits.resize(engine->model().config().vocab);
  size_t at = 0;
  for (const size_t piece : pieces) {
    const absl::Status done =
        engine->Prefill(&sequence, tokens.subspan(at, piece), at, nullptr, outcome.logits);
    EXPECT_TRUE(done.ok()) << done;
    at += piece;
  }
  EXPECT_EQ(at, tokens.size());
  const int planes = options.keep_raw_keys ? 3 : 2;
  for (int plane = 0; plane < planes; ++plane) {
    for (uint32_t layer = 0; layer < engine->model().config().layers; ++layer) {
      for (size_t token = 0; token < tokens.size(); ++token) {
        const std::byte* row = sequence.At(static_cast<Plane>(plane), layer, token);
        outcome.kv.insert(outcome.kv.end(), row, row + cache->row_bytes());
      }
    }
  }
  return outcome;
}

std::vector<size_t> RandomPieces(std::mt19937_64* random, size_t total) {
  std::vector<size_t> pieces;
  for (size_t left = total; left > 0;) {
    const size_t most = std::min<size_t>(left, (*random)() % 2 == 0 ? 4 : 70);
    pieces.push_back(1 + (*random)() % most);
    left -= pieces.back();
  }
  return pieces;
}

TEST(LlamaEngine, StoriesGreedyEqualsGoldenTokens) {
  SKIP_WITHOUT_SHARED_MODEL("stories260K.bin");
  const auto model = LoadStories();
  const auto engine = MakeEngine(*model);
  const std::vector<uint32_t> golden = GoldenTokens();
  const auto cache = MakeCache(*engine);
  Sequence sequence(cache.get());
  std::vector<float> logits(model->config().vocab);
  std::vector<uint32_t> tokens = {golden[0]};
  while (tokens.size() < golden.size()) {
    ASSERT_TRUE(
        engine->Prefill(&sequence, {&tokens.back(), 1}, tokens.size() - 1, nullptr, logits).ok());
    tokens.push_back(Greedy(logits));
    ASSERT_EQ(tokens.back(), golden[tokens.size() - 1]) << "at index " << tokens.size() - 1;
  }
}

TEST(LlamaEngine, StoriesLogitsAreNearTheGoldenOnes) {
  SKIP_WITHOUT_SHARED_MODEL("stories260K.bin");
  const auto model = LoadStories();
  const auto engine = MakeEngine(*model);
  const std::vector<uint32_t> golden = GoldenTokens();
  std::ifstream file(SharedModel("stories260K_greedy.json"));
  const nlohmann::json json = nlohmann::json::parse(file);
  for (const auto& [position, top] : json["top8_id_logit_at_position"].items()) {
    const auto cache = MakeCache(*engine);
    Sequence sequence(cache.get());
    std::vector<float> logits(model->config().vocab);
    const size_t count = std::stoul(position) + 1;
    ASSERT_TRUE(
        engine->Prefill(&sequence, std::span(golden).first(count), 0, nullptr, logits).ok());
    for (const auto& entry : top) {
      const uint32_t id = entry[0].get<uint32_t>();
      EXPECT_NEAR(logits[id], entry[1].get<double>(), 2e-3)
          << "position " << position << " id " << id;
    }
  }
}

TEST(LlamaEngine, TokenizerRoundTrips) {
  SKIP_WITHOUT_SHARED_MODEL("tok512.bin");
  const auto tokenizer = Tokenizer::Load(SharedModel("tok512.bin"), 512);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const char* text : {"Once upon a time, there was a little girl named Lily.", "x",
                           "tabs\tand \xC3\xA9 and \xF0\x9F\x98\x80", "  two  spaces "}) {
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text)), " " + std::string(text));
  }
  const std::vector<uint32_t> golden = GoldenTokens();
  const std::string story = (*tokenizer)->Decode(std::span(golden).first(100));
  EXPECT_EQ(story.substr(0, 42), "Once upon a time, there was a little girl ") << story;
}

struct SplitCase {
  const char* name;
  const char* shape;
  DType dtype;
  bool raw;
  size_t tokens;
};

class LlamaSplit : public ::testing::TestWithParam<SplitCase> {};

// The whole of "output identical" hangs on this.
TEST_P(LlamaSplit, AnySplitAndThreadCountGivesTheSameBits) {
  const SplitCase& param = GetParam();
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("TURNKEEP_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto model = RandomModel(param.shape);
  const auto engine = MakeEngine(*model, 2);
  const auto alone = MakeEngine(*model, 1);
  const auto tokens = RandomTokens(&random, model->config().vocab, param.tokens);
  const Engine::CacheOptions options{.dtype = param.dtype, .keep_raw_keys = param.raw};
  const Outcome whole = RunInPieces(engine.get(), options, tokens, {param.tokens});
  const std::vector<size_t> ones(param.tokens, 1);
  EXPECT_TRUE(whole.SameBits(RunInPieces(engine.get(), options, tokens, ones)));
  EXPECT_TRUE(whole.SameBits(RunInPieces(alone.get(), options, tokens, {param.tokens})));
  for (int round = 0; round < 4; ++round) {
    const auto pieces = RandomPieces(&random, param.tokens);
    EXPECT_TRUE(whole.SameBits(RunInPieces(engine.get(), options, tokens, pieces)))
        << "split " << ::testing::PrintToString(pieces);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LlamaSplit,
    ::testing::Values(
        SplitCase{"float32_rotated", "dim=288,layers=2,heads=6,vocab=500,context=512",
                  DType::kFloat32, false, 300},
        SplitCase{"bfloat16_rotated", "dim=512,layers=2,heads=8,kv_heads=2,vocab=500,context=256",
                  DType::kBFloat16, false, 150},
        SplitCase{"float32_raw", "dim=64,layers=3,heads=8,kv_heads=4,hidden=172,vocab=512",
                  DType::kFloat32, true, 200},
        SplitCase{"bfloat16_raw_odd_shapes",
                  "dim=120,layers=2,heads=5,kv_heads=1,hidden=333,vocab=77,context=300",
                  DType::kBFloat16, true, 299}),
    [](const auto& info) { return info.param.name; });

// A batch of rows of several sequences is what batched decode is.
TEST(LlamaEngine, RowsOfSeveralSequencesDoNotTouchEachOther) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("TURNKEEP_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto model = RandomModel("dim=288,layers=2,heads=6,kv_heads=3,vocab=400,context=128");
  const auto engine = MakeEngine(*model);
  const uint32_t vocab = model->config().vocab;
  constexpr size_t kSequences = 21;
  const auto cache = MakeCache(*engine, {.token_count = 128 * kSequences});
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<std::vector<uint32_t>> tokens;
  std::vector<Engine::Row> rows;
  std::vector<uint32_t> all;
  std::vector<float> unused(vocab);
  for (size_t i = 0; i < kSequences; ++i) {
    sequences.push_back(std::make_unique<Sequence>(cache.get()));
    tokens.push_back(RandomTokens(&random, vocab, 2 + random() % 90));
    const size_t prompt = tokens[i].size() - 1;
    ASSERT_TRUE(
        engine->Prefill(sequences[i].get(), std::span(tokens[i]).first(prompt), 0, nullptr, unused)
            .ok());
    ASSERT_TRUE(sequences[i]->Reserve(prompt + 1).ok());
    rows.push_back({sequences[i].get(), tokens[i].back(), static_cast<uint32_t>(prompt)});
    all.push_back(static_cast<uint32_t>(i));
  }
  std::vector<float> together(kSequences * vocab);
  ASSERT_TRUE(engine->Forward(rows, nullptr, all, together).ok());
  for (size_t i = 0; i < kSequences; ++i) {
    const Outcome single = RunInPieces(engine.get(), {}, tokens[i], {tokens[i].size()});
    EXPECT_EQ(0, std::memcmp(single.logits.data(), &together[i * vocab], vocab * sizeof(float)))
        << "sequence " << i;
  }
}

TEST(LlamaEngine, PagesAreReusedInAnyOrder) {
  const auto model = RandomModel("dim=64,layers=2,heads=4,vocab=100,context=64");
  const auto engine = MakeEngine(*model);
  std::mt19937_64 random(1);
  const auto tokens = RandomTokens(&random, 100, 60);
  const Outcome expected = RunInPieces(engine.get(), {.page_tokens = 256}, tokens, {60});
  for (const uint32_t page_tokens : {1u, 5u, 16u}) {
    const auto cache = MakeCache(*engine, {.page_tokens = page_tokens, .token_count = 192});
    // Three contexts grow by turns, so that their pages are interleaved; one leaves.
    std::vector<float> logits(100);
    Sequence kept(cache.get());
    {
      Sequence first(cache.get()), second(cache.get());
      for (size_t at = 0; at < 60; at += 20) {
        for (Sequence* sequence : {&first, &kept, &second}) {
          ASSERT_TRUE(
              engine->Prefill(sequence, std::span(tokens).subspan(at, 20), at, nullptr, logits)
                  .ok());
        }
      }
    }
    EXPECT_EQ(0, std::memcmp(logits.data(), expected.logits.data(), 400)) << page_tokens;
    Sequence again(cache.get());
    ASSERT_TRUE(engine->Prefill(&again, tokens, 0, nullptr, logits).ok());
    EXPECT_EQ(0, std::memcmp(logits.data(), expected.logits.data(), 400)) << page_tokens;
  }
}

TEST(LlamaEngine, AFullCacheIsAnErrorAndChangesNothing) {
  const auto model = RandomModel("dim=64,layers=1,heads=4,vocab=100,context=64");
  const auto engine = MakeEngine(*model);
  const auto cache = MakeCache(*engine, {.page_tokens = 16, .token_count = 32});
  Sequence sequence(cache.get());
  std::vector<float> logits(100);
  const std::vector<uint32_t> tokens(40, 1);
  const absl::Status full = engine->Prefill(&sequence, tokens, 0, nullptr, logits);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(cache->free_pages(), 2u);
  EXPECT_TRUE(engine->Prefill(&sequence, std::span(tokens).first(32), 0, nullptr, logits).ok());
}

TEST(LlamaEngine, BadInputNamesFieldAndValue) {
  using ::testing::HasSubstr;
  const auto message = [](const std::string& text) {
    return std::string(ParseRandomSpec(text, 1).status().message());
  };
  EXPECT_THAT(message("dim=64,heads=3"), HasSubstr("dim = 64 is not a multiple of heads = 3"));
  EXPECT_THAT(message("dim=x"), HasSubstr("dim = \"x\""));
  EXPECT_THAT(message("43M"), HasSubstr("\"43M\""));
  EXPECT_THAT(message("dim=60,heads=5"), HasSubstr("head size 12"));
  EXPECT_THAT(message("layers=100000"), HasSubstr("layers = 100000"));
  EXPECT_EQ(Model::LoadLlama2c("/nonexistent").status().code(), absl::StatusCode::kNotFound);

  const auto model = RandomModel("dim=64,layers=1,heads=4,vocab=100,context=64");
  const auto engine = MakeEngine(*model);
  const auto cache = MakeCache(*engine);
  Sequence sequence(cache.get());
  std::vector<float> logits(100);
  const std::vector<uint32_t> bad = {5, 100};
  const absl::Status status = engine->Prefill(&sequence, bad, 0, nullptr, logits);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("token 100 at position 1"));
  const std::vector<uint32_t> many(65, 1);
  EXPECT_EQ(engine->Prefill(&sequence, many, 0, nullptr, logits).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(LlamaEngine, ATruncatedCheckpointIsRefused) {
  SKIP_WITHOUT_SHARED_MODEL("stories260K.bin");
  const auto path = std::filesystem::path(::testing::TempDir()) / "turnkeep_cut_checkpoint.bin";
  std::filesystem::copy_file(SharedModel("stories260K.bin"), path,
                             std::filesystem::copy_options::overwrite_existing);
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  for (const uint64_t bytes : {1056536u, 1000u, 20u, 0u}) {
    std::filesystem::resize_file(path, bytes);
    EXPECT_EQ(Model::LoadLlama2c(path).status().code(), absl::StatusCode::kInvalidArgument)
        << bytes;
  }
  std::filesystem::remove(path);
}

TEST(LlamaEngine, BFloat16RoundsToNearestEven) {
  for (const auto& [value, expected] : std::vector<std::pair<float, float>>{
           {1.0f, 1.0f},
           {1.00390625f, 1.0f},       // half a step above an even value
           {1.01171875f, 1.015625f},  // half a step above an odd one
           {1.0040f, 1.0078125f},     // more than half
           {-3.0e38f, FromBFloat16(0xFF62)}}) {
    EXPECT_EQ(FromBFloat16(ToBFloat16(value)), expected) << value;
  }
  EXPECT_TRUE(std::isnan(FromBFloat16(ToBFloat16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace turnkeep::llama
