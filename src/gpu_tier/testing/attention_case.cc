#include "gpu_tier/testing/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <fmt/format.h>

#include "core/check.h"
#include "kernels/element.h"

namespace turnkeep::testing {

namespace {

void FillNormal(DType dtype, std::mt19937_64& random, std::vector<std::byte>* bytes,
                uint64_t count) {
  const uint32_t size = DTypeBytes(dtype);
  bytes->resize(count * size);
  // A table of draws: the oracle needs variety, not independence of far elements.
  std::normal_distribution<float> normal;
  std::vector<std::byte> table(4099 * size);
  for (size_t i = 0; i < 4099; ++i) StoreElement(dtype, normal(random), &table[i * size]);
  for (uint64_t i = 0; i < count;) {
    const uint64_t start = random() % 4099;
    const uint64_t run = std::min<uint64_t>({count - i, 4099 - start, 64 + random() % 64});
    std::copy_n(&table[start * size], run * size, bytes->data() + i * size);
    i += run;
  }
}

}  // namespace

AttentionCase::AttentionCase(const AttentionShape& shape, PrefixForest forest, uint32_t page_count,
                             uint64_t seed)
    : shape_(shape), forest_(std::move(forest)), page_count_(page_count), random_(seed) {
  const uint64_t elements =
      uint64_t{page_count} * shape.kv_heads * shape.page_tokens * shape.head_dim;
  FillNormal(shape.dtype, random_, &keys_, elements);
  FillNormal(shape.dtype, random_, &values_, elements);
  DrawQueries();
}

void AttentionCase::DrawQueries() {
  FillNormal(shape_.dtype, random_, &queries_,
             uint64_t{forest_.row_count()} * shape_.query_heads * shape_.head_dim);
}

AttentionTensors AttentionCase::Tensors() {
  const uint64_t rows = uint64_t{forest_.row_count()} * shape_.query_heads;
  output_.assign(rows * shape_.head_dim, NAN);
  lse_.assign(rows, NAN);
  return {.queries = queries_.data(), .output = output_.data(), .lse = lse_.data()};
}

std::vector<std::vector<KvToken>> AttentionCase::Visible() const {
  std::vector<std::vector<KvToken>> visible(forest_.row_count());
  for (const PrefixForest::Sequence& sequence : forest_.sequences()) {
    if (sequence.query_tokens == 0) continue;
    std::vector<ForestNode> path;
    for (ForestNode node = sequence.leaf; node != kNoForestNode;
         node = forest_.nodes()[node].parent)
      path.insert(path.begin(), node);
    for (uint32_t q = 0; q < sequence.query_tokens; ++q) {
      const uint32_t seen = forest_.PathTokens(sequence.leaf) - (sequence.query_tokens - 1 - q);
      auto& tokens = visible[sequence.first_row + q];
      for (const ForestNode index : path) {
        const PrefixForest::Node& node = forest_.nodes()[index];
        for (uint32_t t = 0; t < node.token_count && node.begin + t < seen; ++t)
          tokens.push_back({node.pages[t / shape_.page_tokens], t % shape_.page_tokens});
      }
    }
  }
  return visible;
}

double AttentionCase::WorstError(std::string* where, uint32_t rows) const {
  std::vector<std::vector<KvToken>> visible = Visible();
  const auto row_count = static_cast<uint32_t>(visible.size());
  const uint32_t step = rows == 0 ? 1 : std::max(1u, row_count / rows);
  for (uint32_t row = 0; row < row_count; ++row)
    if (row % step != 0) visible[row].clear();
  std::vector<double> output(output_.size());
  std::vector<double> lse(lse_.size());
  ReferenceAttention(shape_, kv(), queries_.data(), visible, output.data(), lse.data());
  double worst = 0;
  const auto compare = [&](double is, double should, uint64_t row, const std::string& what) {
    double error = is == should ? 0 : std::abs(is - should) / (1 + std::abs(should));
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    if (error <= worst) return;
    worst = error;
    *where = fmt::format("row {} head {} {}: {} instead of {}", row / shape_.query_heads,
                         row % shape_.query_heads, what, is, should);
  };
  for (uint64_t row = 0; row < lse.size(); ++row) {
    if (row / shape_.query_heads % step != 0) continue;
    compare(lse_[row], lse[row], row, "lse");
    for (uint32_t i = 0; i < shape_.head_dim; ++i) {
      const uint64_t at = row * shape_.head_dim + i;
      compare(output_[at], output[at], row, fmt::format("element {}", i));
    }
  }
  return worst;
}

ForestNode ForestMaker::Node(ForestNode parent, uint32_t tokens) {
  const auto node = forest_.AddNode(parent, MorePages(0, tokens), tokens);
  TK_CHECK(node.ok());
  return *node;
}

void ForestMaker::Sequence(ForestNode leaf, uint32_t query_tokens) {
  TK_CHECK(forest_.AddSequence(leaf, query_tokens).ok());
}

std::vector<uint32_t> ForestMaker::MorePages(uint32_t before, uint32_t tokens) {
  const uint32_t page = forest_.page_tokens();
  const uint32_t count = (before + tokens + page - 1) / page - (before + page - 1) / page;
  std::vector<uint32_t> pages(count);
  for (uint32_t& p : pages) p = next_page_++;
  return pages;
}

void GrowRandomTree(std::mt19937_64& random, ForestMaker& maker, ForestNode parent,
                    const RandomTree& tree) {
  const ForestNode node =
      maker.Node(parent, static_cast<uint32_t>(random() % (tree.max_tokens + 1)));
  const uint32_t path = maker.forest().PathTokens(node);
  const auto children = tree.depth == 0 ? 0 : static_cast<int>(random() % 4);
  if ((children == 0 || random() % 4 == 0) && path > 0)
    maker.Sequence(node, 1 + static_cast<uint32_t>(random() % std::min(path, tree.max_queries)));
  RandomTree below = tree;
  below.depth -= 1;
  for (int i = 0; i < children; ++i) GrowRandomTree(random, maker, node, below);
}

}  // namespace turnkeep::testing
