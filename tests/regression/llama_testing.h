// What the engine's tests share: the small trained model where it is at hand, its golden
// tokens, and random models.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "llama/engine.h"
#include "llama/model.h"

namespace turnkeep::llama::testing {

// Path of a file in the shared folder's models/; empty when it is not there.
inline std::string SharedModel(const std::string& name) {
  const char* shared = std::getenv("TURNKEEP_SHARED");
  if (shared == nullptr) return {};
  const std::filesystem::path path = std::filesystem::path(shared) / "models" / name;
  return std::filesystem::exists(path) ? path.string() : std::string();
}

#define SKIP_WITHOUT_SHARED_MODEL(name)                                              \
  do {                                                                               \
    if (::turnkeep::llama::testing::SharedModel(name).empty()) {                     \
      GTEST_SKIP() << "models/" << name << " is not below TURNKEEP_SHARED; skipped"; \
    }                                                                                \
  } while (false)

inline std::unique_ptr<Model> LoadStories() {
  auto model = Model::LoadLlama2c(SharedModel("stories260K.bin"));
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? std::move(*model) : nullptr;
}

// BOS and the 511 greedy tokens that follow it.
inline std::vector<uint32_t> GoldenTokens() {
  std::ifstream file(SharedModel("stories260K_greedy.json"));
  const nlohmann::json golden = nlohmann::json::parse(file);
  std::vector<uint32_t> tokens = golden["prompt_token_ids"].get<std::vector<uint32_t>>();
  for (const auto& token : golden["greedy_token_ids"]) tokens.push_back(token.get<uint32_t>());
  return tokens;
}

inline std::unique_ptr<Model> RandomModel(const std::string& shape, uint64_t seed = 7) {
  const auto spec = ParseRandomSpec(shape, seed);
  EXPECT_TRUE(spec.ok()) << spec.status();
  auto model = Model::Random(*spec);
  EXPECT_TRUE(model.ok()) << model.status();
  return std::move(*model);
}

// Printed by every test that draws from it; TURNKEEP_SEED replays a run.
inline uint64_t TestSeed() {
  const char* given = std::getenv("TURNKEEP_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  ::testing::Test::RecordProperty("seed", std::to_string(seed));
  return seed;
}

inline std::vector<uint32_t> RandomTokens(std::mt19937_64* random, uint32_t vocab, size_t count) {
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>((*random)() % vocab);
  return tokens;
}

}  // namespace turnkeep::llama::testing
