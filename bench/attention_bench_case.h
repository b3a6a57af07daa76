// The batch of an attention bench's shape, and what it takes to answer it.
#pragma once

#include <vector>

#include "attention_bench.h"
#include "gpu_tier/testing/attention_case.h"

namespace turnkeep::bench {

inline turnkeep::testing::AttentionCase MakeAttentionCase(const AttentionShape& shape,
                                                          const AttentionCaseSpec& spec,
                                                          uint64_t seed) {
  turnkeep::testing::ForestMaker maker(shape.page_tokens);
  std::vector<ForestNode> nodes;
  for (const AttentionNode& node : spec.nodes) {
    nodes.push_back(maker.Node(
        node.parent < 0 ? kNoForestNode : nodes[static_cast<size_t>(node.parent)], node.tokens));
    for (uint32_t i = 0; i < node.sequences; ++i) maker.Sequence(nodes.back(), node.query_tokens);
  }
  return turnkeep::testing::AttentionCase(shape, maker.forest(), maker.page_count(), seed);
}

// Multiply-adds of scores and values, two operations each.
inline double AttentionOperations(const PrefixForest& forest, const AttentionShape& shape) {
  double tokens = 0;
  for (const auto& sequence : forest.sequences()) {
    for (uint32_t q = 0; q < sequence.query_tokens; ++q)
      tokens += forest.PathTokens(sequence.leaf) - q;
  }
  return 4.0 * tokens * shape.query_heads * shape.head_dim;
}

}  // namespace turnkeep::bench
