// The batch as attention sees it: trees of shared KV and the sequences that end in them.
//
// A node is a run of tokens in pages of the engine's paged cache; a sequence is a path from a root
// to a node, and its query tokens are the last of that path (one in decode, more in short
// prefill; among themselves they are causal). Sequences that share a prefix share nodes. A tree of
// draft tokens is nodes of one token each.
//
// Rows, the queries of an attention call, are numbered by sequence, in the order of their indexes;
// an index is used again after its sequence left.
//
// Not thread-safe.
//
//   PrefixForest forest(16);
//   auto system = *forest.AddNode(kNoForestNode, system_pages, 1000);
//   auto turn = *forest.AddNode(system, own_pages, 37);
//   auto sequence = *forest.AddSequence(turn);
//   forest.Extend(turn, 1, {});              // a decode step
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

namespace turnkeep {

using ForestNode = uint32_t;
using ForestSequence = uint32_t;
inline constexpr ForestNode kNoForestNode = 0xFFFFFFFFu;

class PrefixForest {
 public:
  struct Node {
    ForestNode parent = kNoForestNode;
    std::vector<ForestNode> children;
    std::vector<ForestSequence> sequences;  // that end here
    std::vector<uint32_t> pages;
    uint32_t token_count = 0;
    uint32_t begin = 0;  // tokens before it on its path
    bool in_use = false;
  };
  struct Sequence {
    ForestNode leaf = kNoForestNode;
    uint32_t query_tokens = 0;  // 0: the index is free
    uint32_t first_row = 0;
  };
  // What a planner that keeps its plan has to follow.
  struct Change {
    enum class Kind : uint32_t { kJoin, kLeave, kGrow };
    Kind kind = Kind::kJoin;
    uint32_t index = 0;  // of the sequence, or of the node that grew
  };
  static constexpr size_t kMaxChanges = 4096;  // that are remembered

  // `page_tokens` in 1..256.
  explicit PrefixForest(uint32_t page_tokens) : page_tokens_(page_tokens) {}

  // A run of `token_count` tokens, maybe none yet, that begins at the start of pages[0].
  // InvalidArgument: no such parent, or pages that do not fit the tokens.
  absl::StatusOr<ForestNode> AddNode(ForestNode parent, std::span<const uint32_t> pages,
                                     uint32_t token_count);
  // The node, which has no children, grows. InvalidArgument as AddNode.
  absl::Status Extend(ForestNode node, uint32_t tokens, std::span<const uint32_t> new_pages);
  // InvalidArgument: no such node, or fewer tokens on the path than query tokens, of which there
  // must be one.
  absl::StatusOr<ForestSequence> AddSequence(ForestNode leaf, uint32_t query_tokens = 1);
  // Nodes that lead to no sequence any more go too.
  void RemoveSequence(ForestSequence sequence);

  uint32_t page_tokens() const { return page_tokens_; }
  uint32_t row_count() const { return row_count_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }
  const std::vector<ForestNode>& roots() const { return roots_; }
  uint32_t PathTokens(ForestNode node) const {
    return nodes_[node].begin + nodes_[node].token_count;
  }
  // Tokens of all nodes: what is read if each is read once.
  uint64_t UniqueTokens() const;
  // Changes with everything but Extend, which changes growth_version.
  uint64_t structure_version() const { return structure_version_; }
  uint64_t growth_version() const { return growth_version_; }
  // How many changes there were, and those since there were `since`, oldest first; nullopt if they
  // are forgotten. Valid until the next change.
  uint64_t change_count() const { return forgotten_changes_ + changes_.size(); }
  std::optional<std::span<const Change>> ChangesSince(uint64_t since) const;

 private:
  absl::Status CheckPages(uint64_t page_count, uint64_t token_count) const;
  void DropIfUnused(ForestNode node);
  void NumberRows();
  void Note(Change::Kind kind, uint32_t index);

  uint32_t page_tokens_;
  std::vector<Node> nodes_;
  std::vector<ForestNode> free_nodes_;
  std::vector<ForestNode> roots_;
  std::vector<Sequence> sequences_;
  std::vector<ForestSequence> free_sequences_;
  uint32_t row_count_ = 0;
  uint64_t structure_version_ = 0;
  uint64_t growth_version_ = 0;
  std::vector<Change> changes_;
  uint64_t forgotten_changes_ = 0;
};

// The forest of a batch of block tables: sequences whose tables begin with the same whole pages
// share nodes. `context_tokens[i]` tokens lie in block_tables[i], the last query_tokens[i] of them
// are its queries. Sequence i of the forest is i. InvalidArgument as AddNode and AddSequence.
absl::StatusOr<PrefixForest> ForestOfBlockTables(
    uint32_t page_tokens, std::span<const std::vector<uint32_t>> block_tables,
    std::span<const uint32_t> context_tokens, std::span<const uint32_t> query_tokens);

}  // namespace turnkeep
