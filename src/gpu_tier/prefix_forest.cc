#include "gpu_tier/prefix_forest.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

absl::Status PrefixForest::CheckPages(uint64_t page_count, uint64_t token_count) const {
  const uint64_t needed = (token_count + page_tokens_ - 1) / page_tokens_;
  if (page_count >= needed) return absl::OkStatus();
  return InvalidArgument("forest: {} tokens need {} pages of {}, {} are given", token_count, needed,
                         page_tokens_, page_count);
}

absl::StatusOr<ForestNode> PrefixForest::AddNode(ForestNode parent, std::span<const uint32_t> pages,
                                                 uint32_t token_count) {
  if (parent != kNoForestNode && (parent >= nodes_.size() || !nodes_[parent].in_use))
    return InvalidArgument("forest: there is no parent {}", parent);
  TK_RETURN_IF_ERROR(CheckPages(pages.size(), token_count));
  ForestNode index = static_cast<ForestNode>(nodes_.size());
  if (free_nodes_.empty()) {
    nodes_.emplace_back();
  } else {
    index = free_nodes_.back();
    free_nodes_.pop_back();
  }
  Node& node = nodes_[index];
  node = {.parent = parent,
          .pages = {pages.begin(), pages.end()},
          .token_count = token_count,
          .begin = parent == kNoForestNode ? 0 : PathTokens(parent),
          .in_use = true};
  if (parent == kNoForestNode) {
    roots_.push_back(index);
  } else {
    nodes_[parent].children.push_back(index);
  }
  ++structure_version_;
  return index;
}

absl::Status PrefixForest::Extend(ForestNode index, uint32_t tokens,
                                  std::span<const uint32_t> new_pages) {
  if (index >= nodes_.size() || !nodes_[index].in_use)
    return InvalidArgument("forest: there is no node {}", index);
  Node& node = nodes_[index];
  if (!node.children.empty())
    return InvalidArgument("forest: node {} has children and cannot grow", index);
  TK_RETURN_IF_ERROR(
      CheckPages(node.pages.size() + new_pages.size(), uint64_t{node.token_count} + tokens));
  node.pages.insert(node.pages.end(), new_pages.begin(), new_pages.end());
  node.token_count += tokens;
  ++growth_version_;
  Note(Change::Kind::kGrow, index);
  return absl::OkStatus();
}

absl::StatusOr<ForestSequence> PrefixForest::AddSequence(ForestNode leaf, uint32_t query_tokens) {
  if (leaf >= nodes_.size() || !nodes_[leaf].in_use)
    return InvalidArgument("forest: there is no node {}", leaf);
  if (query_tokens == 0 || query_tokens > PathTokens(leaf)) {
    return InvalidArgument("forest: {} query tokens on a path of {} tokens", query_tokens,
                           PathTokens(leaf));
  }
  ForestSequence index = static_cast<ForestSequence>(sequences_.size());
  if (free_sequences_.empty()) {
    sequences_.emplace_back();
  } else {
    index = free_sequences_.back();
    free_sequences_.pop_back();
  }
  sequences_[index] = {.leaf = leaf, .query_tokens = query_tokens};
  nodes_[leaf].sequences.push_back(index);
  NumberRows();
  ++structure_version_;
  Note(Change::Kind::kJoin, index);
  return index;
}

void PrefixForest::RemoveSequence(ForestSequence index) {
  TK_CHECK(index < sequences_.size() && sequences_[index].query_tokens > 0);
  const ForestNode leaf = sequences_[index].leaf;
  sequences_[index] = {};
  free_sequences_.push_back(index);
  std::erase(nodes_[leaf].sequences, index);
  NumberRows();
  DropIfUnused(leaf);
  ++structure_version_;
  Note(Change::Kind::kLeave, index);
}

void PrefixForest::Note(Change::Kind kind, uint32_t index) {
  if (changes_.size() == kMaxChanges) {
    // The older half at once, so that a change costs nothing on average.
    changes_.erase(changes_.begin(), changes_.begin() + kMaxChanges / 2);
    forgotten_changes_ += kMaxChanges / 2;
  }
  changes_.push_back({kind, index});
}

std::optional<std::span<const PrefixForest::Change>> PrefixForest::ChangesSince(
    uint64_t since) const {
  if (since < forgotten_changes_ || since > change_count()) return std::nullopt;
  return std::span(changes_).subspan(since - forgotten_changes_);
}

void PrefixForest::DropIfUnused(ForestNode index) {
  while (index != kNoForestNode && nodes_[index].children.empty() &&
         nodes_[index].sequences.empty()) {
    const ForestNode parent = nodes_[index].parent;
    std::erase(parent == kNoForestNode ? roots_ : nodes_[parent].children, index);
    nodes_[index] = {};
    free_nodes_.push_back(index);
    index = parent;
  }
}

void PrefixForest::NumberRows() {
  row_count_ = 0;
  for (Sequence& sequence : sequences_) {
    sequence.first_row = row_count_;
    row_count_ += sequence.query_tokens;
  }
}

uint64_t PrefixForest::UniqueTokens() const {
  return std::accumulate(nodes_.begin(), nodes_.end(), uint64_t{0},
                         [](uint64_t sum, const Node& node) { return sum + node.token_count; });
}

namespace {

// Adds the tables [begin, end) of `order`, which agree in their first `depth` pages, below
// `parent`, which holds those.
absl::Status AddTables(PrefixForest& forest, std::span<const std::vector<uint32_t>> tables,
                       std::span<const uint32_t> shareable, std::span<const uint32_t> tokens,
                       std::span<const uint32_t> order, size_t depth, ForestNode parent,
                       std::vector<ForestNode>* leaves) {
  for (size_t begin = 0; begin < order.size();) {
    const uint32_t first = order[begin];
    // Those that go on with the same page.
    size_t end = begin + 1;
    size_t common = shareable[first];
    while (end < order.size() && depth < shareable[first] && depth < shareable[order[end]] &&
           tables[order[end]][depth] == tables[first][depth]) {
      const auto& other = tables[order[end]];
      size_t same = depth;
      while (same < std::min<size_t>(common, shareable[order[end]]) &&
             tables[first][same] == other[same]) {
        ++same;
      }
      common = same;
      ++end;
    }
    if (end - begin == 1) {
      const uint32_t own_tokens =
          tokens[first] - static_cast<uint32_t>(depth) * forest.page_tokens();
      TK_ASSIGN_OR_RETURN(
          (*leaves)[first],
          forest.AddNode(parent, std::span(tables[first]).subspan(depth), own_tokens));
    } else {
      TK_ASSIGN_OR_RETURN(
          const ForestNode node,
          forest.AddNode(parent, std::span(tables[first]).subspan(depth, common - depth),
                         static_cast<uint32_t>(common - depth) * forest.page_tokens()));
      TK_RETURN_IF_ERROR(AddTables(forest, tables, shareable, tokens,
                                   order.subspan(begin, end - begin), common, node, leaves));
    }
    begin = end;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PrefixForest> ForestOfBlockTables(
    uint32_t page_tokens, std::span<const std::vector<uint32_t>> block_tables,
    std::span<const uint32_t> context_tokens, std::span<const uint32_t> query_tokens) {
  if (page_tokens == 0 || page_tokens > 256)
    return InvalidArgument("forest: page_tokens {} is outside 1..256", page_tokens);
  if (block_tables.size() != context_tokens.size() || block_tables.size() != query_tokens.size()) {
    return InvalidArgument("forest: {} block tables, {} context lengths, {} query counts",
                           block_tables.size(), context_tokens.size(), query_tokens.size());
  }
  PrefixForest forest(page_tokens);
  std::vector<uint32_t> order(block_tables.size());
  std::vector<uint32_t> shareable(block_tables.size());  // whole pages before the last token
  for (uint32_t i = 0; i < order.size(); ++i) {
    order[i] = i;
    if (block_tables[i].size() < (context_tokens[i] + page_tokens - 1) / page_tokens) {
      return InvalidArgument("forest: sequence {} has {} tokens in {} pages of {}", i,
                             context_tokens[i], block_tables[i].size(), page_tokens);
    }
    shareable[i] = context_tokens[i] == 0 ? 0 : (context_tokens[i] - 1) / page_tokens;
  }
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::lexicographical_compare(
        block_tables[a].begin(), block_tables[a].begin() + shareable[a], block_tables[b].begin(),
        block_tables[b].begin() + shareable[b]);
  });
  std::vector<ForestNode> leaves(block_tables.size());
  TK_RETURN_IF_ERROR(
      AddTables(forest, block_tables, shareable, context_tokens, order, 0, kNoForestNode, &leaves));
  for (size_t i = 0; i < leaves.size(); ++i) {
    TK_RETURN_IF_ERROR(forest.AddSequence(leaves[i], query_tokens[i]).status());
  }
  return forest;
}

}  // namespace turnkeep
