// A batch with random KV for tests and benches of attention: a forest, pages, queries, and the
// oracle's answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "gpu_tier/prefix_forest.h"
#include "kernels/attention.h"
#include "kernels/attention_reference.h"

namespace turnkeep::testing {

class AttentionCase {
 public:
  // KV for all pages of the forest and queries for all its rows, normally distributed.
  AttentionCase(const AttentionShape& shape, PrefixForest forest, uint32_t page_count,
                uint64_t seed);

  PrefixForest& forest() { return forest_; }
  const AttentionShape& shape() const { return shape_; }
  uint32_t page_count() const { return page_count_; }
  PagedKv kv() const { return PagedKv::Dense(shape_, keys_.data(), values_.data()); }
  // Outputs are overwritten with NaN.
  AttentionTensors Tensors();
  // New random queries for the forest's present rows.
  void DrawQueries();

  // What each row sees.
  std::vector<std::vector<KvToken>> Visible() const;

  // The largest |output - oracle| ÷ (1 + |oracle|) over all rows and elements, log-sum-exps
  // included; infinite where one side is not finite and the other differs. `rows` 0: all, otherwise
  // so many spread evenly. `where` names the worst.
  double WorstError(std::string* where, uint32_t rows = 0) const;

  const std::vector<float>& output() const { return output_; }
  const std::vector<float>& lse() const { return lse_; }

 private:
  const AttentionShape shape_;
  PrefixForest forest_;
  const uint32_t page_count_;
  std::mt19937_64 random_;
  std::vector<std::byte> keys_;
  std::vector<std::byte> values_;
  std::vector<std::byte> queries_;
  std::vector<float> output_;
  std::vector<float> lse_;
};

// Nodes are given pages of their own, one after another.
class ForestMaker {
 public:
  explicit ForestMaker(uint32_t page_tokens) : forest_(page_tokens) {}
  ForestNode Node(ForestNode parent, uint32_t tokens);
  void Sequence(ForestNode leaf, uint32_t query_tokens = 1);
  // Pages for `tokens` more tokens of a node that holds `before`.
  std::vector<uint32_t> MorePages(uint32_t before, uint32_t tokens);
  uint32_t page_count() const { return next_page_; }
  const PrefixForest& forest() const { return forest_; }
  PrefixForest& forest() { return forest_; }

 private:
  PrefixForest forest_;
  uint32_t next_page_ = 0;
};

// A tree below `parent` with up to `depth` levels below its first node: nodes of 0 to max_tokens
// tokens with up to three children each. Sequences of 1 to max_queries query tokens end in the
// leaves and in a quarter of the other nodes, where their paths have tokens.
struct RandomTree {
  int depth = 3;
  uint32_t max_tokens = 0;
  uint32_t max_queries = 1;
};
void GrowRandomTree(std::mt19937_64& random, ForestMaker& maker, ForestNode parent,
                    const RandomTree& tree);

}  // namespace turnkeep::testing
