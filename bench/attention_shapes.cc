// The shape sets of `turnkeep bench attention`.
#include <algorithm>
#include <filesystem>
#include <random>

#include <fmt/format.h>
#include <zlib.h>
#include <nlohmann/json.hpp>

#include "attention_bench.h"
#include "core/status.h"

namespace turnkeep::bench {

namespace {

// ---- chunkattention --------------------------------------------------------------

// The paper's: batch 32, 32 heads of 128. Each sequence has its query's own token behind the
// prompt, of which the first `shared` tokens are common.
AttentionCaseSpec ChunkAttention(uint32_t prompt, uint32_t shared) {
  AttentionCaseSpec spec{
      .shape = fmt::format("p{}-s{}", prompt, shared), .query_heads = 32, .kv_heads = 32};
  if (shared > 0) spec.nodes.push_back({.tokens = shared});
  for (int i = 0; i < 32; ++i) spec.nodes.push_back({shared > 0 ? 0 : -1, prompt - shared + 1, 1});
  return spec;
}

AttentionShapeSet ChunkAttentionSet() {
  AttentionShapeSet set{.note = "not at all, the paper's own shapes"};
  for (const uint32_t prompt : {1024u, 2048u, 4096u}) {
    set.cases.push_back(ChunkAttention(prompt, prompt));
    set.cases.push_back(ChunkAttention(prompt, 0));
  }
  return set;
}

// ---- relay -----------------------------------------------------------------------

AttentionShapeSet RelaySet(uint32_t heads) {
  AttentionShapeSet set{.note = fmt::format("{} heads (the paper has 52)", heads)};
  for (uint32_t prefix = 64; prefix <= 16384; prefix *= 2) {
    for (const uint32_t context : {128u, 256u}) {
      for (uint32_t requests = 1; requests <= 128; requests *= 2) {
        AttentionCaseSpec spec{.shape = fmt::format("s{}-c{}-b{}", prefix, context, requests),
                               .query_heads = heads,
                               .kv_heads = heads};
        spec.nodes.push_back({.tokens = prefix});
        for (uint32_t i = 0; i < requests; ++i) spec.nodes.push_back({0, context, 1});
        const double b = requests;
        spec.traffic_bound = b * (prefix + context) / (prefix + b * context);
        set.cases.push_back(std::move(spec));
      }
    }
  }
  return set;
}

// ---- pat -------------------------------------------------------------------------

// Levels of equal nodes, "counts_lengths": `1,4,16_512,64,32` is a root of 512 tokens, 4 nodes of
// 64 below it and 16 of 32 below those, which sequences end in.
AttentionCaseSpec Levels(const std::vector<uint32_t>& counts, const std::vector<uint32_t>& lengths,
                         uint32_t query_heads, uint32_t kv_heads) {
  AttentionCaseSpec spec{.shape = fmt::format("{}_{}-h{}/{}", fmt::join(counts, ","),
                                              fmt::join(lengths, ","), query_heads, kv_heads),
                         .query_heads = query_heads,
                         .kv_heads = kv_heads};
  size_t above = 0;
  for (size_t level = 0; level < counts.size(); ++level) {
    const size_t begin = spec.nodes.size();
    for (uint32_t i = 0; i < counts[level]; ++i) {
      const int parent =
          level == 0 ? -1 : static_cast<int>(above + i / (counts[level] / counts[level - 1]));
      spec.nodes.push_back({parent, lengths[level], level + 1 == counts.size() ? 1u : 0u});
    }
    above = begin;
  }
  return spec;
}

AttentionShapeSet PatSet(uint32_t scale) {
  struct Tree {
    std::vector<uint32_t> counts, lengths;
  };
  const Tree trees[] = {
      {{1, 32}, {2048, 32}},
      {{1, 16}, {1024, 64}},
      {{1, 64}, {512, 16}},
      {{1, 8}, {4096, 256}},
      {{1, 4}, {256, 512}},
      {{2, 32}, {1024, 64}},
      {{4, 32}, {512, 128}},
      {{8, 32}, {256, 64}},
      {{1, 4, 32}, {512, 256, 64}},
      {{1, 8, 64}, {512, 128, 32}},
      {{1, 2, 16}, {64, 1024, 128}},
      {{1, 16, 32}, {1024, 16, 16}},
      {{2, 8, 32}, {256, 256, 64}},
      {{1, 4, 16, 64}, {256, 64, 128, 32}},
      {{1, 2, 4, 8}, {512, 512, 512, 512}},
      {{1, 4, 16, 32}, {32, 256, 32, 64}},
      {{1, 8, 16, 32}, {128, 16, 8, 128}},
      {{1}, {4096}},
      {{16}, {1024}},
      {{64}, {256}},
  };
  constexpr std::pair<uint32_t, uint32_t> kHeads[] = {{8, 8}, {4, 2}, {8, 2}, {16, 2}};
  AttentionShapeSet set{.note = "trees a quarter as wide"};
  if (scale == 1) set.note += ", heads 32/32, 16/8, 32/8 and 64/8 divided by four";
  for (const auto& [query_heads, kv_heads] : kHeads)
    for (const Tree& tree : trees)
      set.cases.push_back(Levels(tree.counts, tree.lengths, scale * query_heads, scale * kv_heads));
  return set;
}

// ---- deft ------------------------------------------------------------------------

absl::StatusOr<nlohmann::json> ReadGzipJson(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return NotFound("cannot open {}", path);
  std::string text;
  std::vector<char> buffer(1 << 16);
  int count = 0;
  while ((count = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0)
    text.append(buffer.data(), static_cast<size_t>(count));
  gzclose(file);
  if (count < 0) return DataLoss("{}: not whole gzip data", path);
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("{}: not JSON", path);
  return json;
}

// Nodes keyed by number, 0 the prompt; every leaf is a sequence.
absl::StatusOr<AttentionCaseSpec> ReasoningTree(const nlohmann::json& tree,
                                                const std::string& name) {
  AttentionCaseSpec spec{.shape = name, .query_heads = 8, .kv_heads = 2};
  const auto data = tree.find("data");
  if (data == tree.end() || !data->is_object()) return InvalidArgument("{}: no data", name);
  std::vector<std::pair<std::string, int>> stack = {{"0", -1}};
  while (!stack.empty()) {
    const auto [key, parent] = stack.back();
    stack.pop_back();
    const auto node = data->find(key);
    if (node == data->end() || spec.nodes.size() > data->size())
      return InvalidArgument("{}: node {} is missing or visited twice", name, key);
    const int index = static_cast<int>(spec.nodes.size());
    const auto& children = node->at("children");
    spec.nodes.push_back(
        {parent, std::max(1u, node->value("value", 0u)), children.empty() ? 1u : 0u});
    for (const auto& child : children) {
      stack.emplace_back(
          child.is_string() ? child.get<std::string>() : std::to_string(child.get<int>()), index);
    }
  }
  return spec;
}

// Draft tokens as paths of choices; every token queries.
AttentionCaseSpec SpeculativeTree(const std::vector<std::vector<int>>& paths, uint32_t prompt,
                                  const std::string& name) {
  AttentionCaseSpec spec{.shape = name, .query_heads = 8, .kv_heads = 2};
  spec.nodes.push_back({.tokens = prompt, .sequences = 1});
  std::vector<std::vector<int>> sorted = paths;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.size() < b.size(); });
  for (size_t i = 0; i < sorted.size(); ++i) {
    int parent = 0;
    for (size_t j = 0; j < i; ++j) {
      if (sorted[j].size() + 1 == sorted[i].size() &&
          std::equal(sorted[j].begin(), sorted[j].end(), sorted[i].begin()))
        parent = static_cast<int>(j) + 1;
    }
    spec.nodes.push_back({parent, 1, 1});
  }
  return spec;
}

void AddBuiltInTrees(AttentionShapeSet* set) {
  for (const uint32_t width : {20u, 50u}) {  // few-shot prompting
    AttentionCaseSpec spec{
        .shape = fmt::format("few-shot-w{}", width), .query_heads = 8, .kv_heads = 2};
    spec.nodes.push_back({.tokens = 4000});
    for (uint32_t i = 0; i < width; ++i) spec.nodes.push_back({0, 200 + i, 1});
    set->cases.push_back(std::move(spec));
  }
  // 64 draft tokens: 10 first choices, each next level fewer.
  std::vector<std::vector<int>> paths;
  for (int a = 0; a < 10; ++a) {
    paths.push_back({a});
    for (int b = 0; b < 9 - a; ++b) {
      paths.push_back({a, b});
      if (a + b < 2) paths.push_back({a, b, 0});
    }
  }
  paths.resize(std::min<size_t>(paths.size(), 64));
  set->cases.push_back(SpeculativeTree(paths, 1000, "speculative-64"));
}

absl::StatusOr<AttentionShapeSet> DeftSet(const std::string& trees, uint32_t scale) {
  constexpr size_t kTreesOfAFile = 5;
  AttentionShapeSet set{.note = scale == 1 ? "heads 8/2 and 8/8 instead of 32/8 and 32/32; "
                                           : "heads 32/8 and 32/32; "};
  set.note += "built-in trees";
  AddBuiltInTrees(&set);
  for (const char* name : {"docmergeToT", "set128ToT"}) {
    const std::string path = fmt::format("{}/deft_{}.json.gz", trees, name);
    if (!std::filesystem::exists(path)) continue;
    TK_ASSIGN_OR_RETURN(const nlohmann::json file, ReadGzipJson(path));
    for (size_t i = 0; i < std::min(file.size(), kTreesOfAFile); ++i) {
      TK_ASSIGN_OR_RETURN(AttentionCaseSpec spec,
                          ReasoningTree(file[i], fmt::format("{}-{}", name, i)));
      set.cases.push_back(std::move(spec));
    }
    set.note += fmt::format(", the first {} trees of deft_{}.json.gz", kTreesOfAFile, name);
  }
  const std::string path = trees + "/deft_spec_tree64.json.gz";
  if (std::filesystem::exists(path)) {
    TK_ASSIGN_OR_RETURN(const nlohmann::json file, ReadGzipJson(path));
    const auto structure = file.find("Tree_Structure");
    if (structure == file.end()) return InvalidArgument("{}: no Tree_Structure", path);
    set.cases.push_back(
        SpeculativeTree(structure->get<std::vector<std::vector<int>>>(), 1000, "deft_spec_tree64"));
    set.note += ", deft_spec_tree64.json.gz";
  }
  // The paper's models: Llama-3-8B has 32/8 heads, CodeLlama-7B 32/32.
  for (size_t i = 0, count = set.cases.size(); i < count; ++i) {
    set.cases.push_back(set.cases[i]);
    set.cases[i].query_heads = set.cases.back().query_heads = 8 * scale;
    set.cases[i].kv_heads = 2 * scale;
    set.cases.back().kv_heads = 8 * scale;
    set.cases[i].shape += fmt::format("-h{}/{}", 8 * scale, 2 * scale);
    set.cases.back().shape += fmt::format("-h{}/{}", 8 * scale, 8 * scale);
  }
  return set;
}

// ---- random ----------------------------------------------------------------------

// Draft tokens below a node, each a query: which of them see which is a tree mask.
void AddDraft(std::mt19937_64& random, int below, AttentionCaseSpec* spec) {
  const auto first = static_cast<int>(spec->nodes.size());
  const int count = 4 + static_cast<int>(random() % 29);
  for (int i = 0; i < count; ++i) {
    const int parent =
        i == 0 ? below : first + static_cast<int>(random() % static_cast<uint64_t>(i));
    spec->nodes.push_back({parent, 1, 1});
  }
}

AttentionCaseSpec RandomCase(std::mt19937_64& random, const std::string& name) {
  constexpr uint32_t kDims[] = {64, 128, 256, 96, 8, 576};
  constexpr DType kTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
  const uint32_t group = 1u << (random() % 7);
  const uint32_t kv_heads = group > 8 ? 1 : 1u << (random() % 3);
  // Mostly what models have.
  AttentionCaseSpec spec{.query_heads = kv_heads * group,
                         .kv_heads = kv_heads,
                         .head_dim = kDims[random() % (random() % 4 == 0 ? 6 : 3)],
                         .dtype = kTypes[random() % 3]};
  const bool draft = random() % 3 == 0;
  const uint32_t queries = draft || random() % 2 == 0 ? 1 : 2 + static_cast<uint32_t>(random() % 7);
  const size_t count = 1 + random() % (draft ? 8 : 40);
  for (size_t n = 0; n < count; ++n) {
    const bool root = n == 0 || random() % 10 == 0;
    const auto tokens = static_cast<uint32_t>(queries + random() % (random() % 3 == 0 ? 1000 : 60));
    spec.nodes.push_back(
        {root ? -1 : static_cast<int>(random() % n), tokens, random() % 4 == 0 ? 1u : 0u, queries});
  }
  std::vector<bool> inner(count);
  for (const AttentionNode& node : spec.nodes)
    if (node.parent >= 0) inner[static_cast<size_t>(node.parent)] = true;
  for (size_t n = 0; n < count; ++n) {
    if (inner[n]) continue;
    spec.nodes[n].sequences = 1;
    if (draft) AddDraft(random, static_cast<int>(n), &spec);
  }
  spec.shape = fmt::format("{}-{}-h{}/{}-d{}-q{}{}", name, std::string(NameOf(spec.dtype)),
                           spec.query_heads, kv_heads, spec.head_dim, queries,
                           draft         ? "-tree"
                           : queries > 1 ? "-causal"
                                         : "");
  return spec;
}

AttentionShapeSet RandomSet(uint64_t seed) {
  AttentionShapeSet set{.note = fmt::format("made for it, seed {}", seed)};
  std::mt19937_64 random(seed);
  for (int i = 0; i < 40; ++i)
    set.cases.push_back(RandomCase(random, fmt::format("random-{}-{}", seed, i)));
  return set;
}

absl::StatusOr<AttentionShapeSet> MakeSet(const AttentionShapeOptions& options) {
  const uint32_t scale = options.full ? 4 : 1;
  if (options.set == "chunkattention") return ChunkAttentionSet();
  if (options.set == "relay") return RelaySet(13 * scale);
  if (options.set == "pat") return PatSet(scale);
  if (options.set == "deft") return DeftSet(options.trees, scale);
  if (options.set == "random") return RandomSet(options.seed);
  return InvalidArgument("shapes: '{}' is none of {}", options.set,
                         fmt::join(AttentionShapeSetNames(), ", "));
}

}  // namespace

std::vector<std::string> AttentionShapeSetNames() {
  return {"chunkattention", "relay", "pat", "deft", "random"};
}

absl::StatusOr<AttentionShapeSet> MakeAttentionShapes(const AttentionShapeOptions& options) {
  TK_ASSIGN_OR_RETURN(AttentionShapeSet set, MakeSet(options));
  std::erase_if(set.cases, [&](const AttentionCaseSpec& spec) {
    return spec.shape.find(options.filter) == std::string::npos;
  });
  if (!set.cases.empty()) return set;
  return InvalidArgument("shapes: no name in {} contains '{}'", options.set, options.filter);
}

}  // namespace turnkeep::bench
