#include "gpu_tier/plan_builder.h"

#include <algorithm>
#include <bit>

namespace turnkeep {

void PlanBuilder::PathOf(const PrefixForest& forest, ForestNode leaf, std::vector<NodePiece>* path,
                         size_t last) {
  path->clear();
  for (ForestNode node = leaf; node != kNoForestNode && path->size() < last;
       node = forest.nodes()[node].parent) {
    const uint32_t tokens = forest.nodes()[node].token_count;
    if (tokens > 0) path->push_back({node, 0, tokens});
  }
  std::reverse(path->begin(), path->end());
}

void PlanBuilder::AddPath(std::span<const NodePiece> pieces,
                          std::span<const ForestSequence> sequences, uint32_t most_tokens) {
  items_.push_back(
      {pieces_.size(), pieces.size(), sequences_.size(), sequences.size(), most_tokens});
  pieces_.insert(pieces_.end(), pieces.begin(), pieces.end());
  sequences_.insert(sequences_.end(), sequences.begin(), sequences.end());
}

void PlanBuilder::AddMasked(std::span<const NodePiece> pieces,
                            std::span<const ForestSequence> sequences) {
  AddPath(pieces, sequences);
  items_.back().masked = true;
}

uint32_t SplitTokens(const AttentionPlannerOptions& options, uint64_t item_count,
                     uint64_t token_count) {
  const uint64_t tasks = item_count * options.shape.kv_heads;
  if (tasks == 0 || tasks >= options.target_tasks) return 0xFFFFFFFFu;
  const uint64_t share = token_count * options.shape.kv_heads / options.target_tasks + 1;
  return static_cast<uint32_t>(std::max<uint64_t>(std::bit_floor(share), options.min_split_tokens));
}

uint32_t PartTokens(uint64_t token_count, uint32_t split_tokens) {
  constexpr uint64_t kTile = 48;
  const uint64_t parts = (token_count + split_tokens - 1) / split_tokens;
  if (parts <= 1) return 0xFFFFFFFFu;
  const uint64_t equal = (token_count + parts - 1) / parts;
  return static_cast<uint32_t>((equal + kTile - 1) / kTile * kTile);
}

void PlanBuilder::Finish() {
  plan_->Clear();
  plan_->row_count = forest_.row_count();
  uint64_t tokens = 0;
  for (const NodePiece& piece : pieces_) tokens += piece.end - piece.begin;
  const uint32_t split = SplitTokens(options_, items_.size(), tokens);
  for (const Item& item : items_) {
    if (item.masked) {
      EmitMasked(item);
    } else {
      EmitPath(item, std::min(split, item.most_tokens));
    }
  }
  EmitEmpty();
  LinkPartials();
}

AttentionPlan::Unit& PlanBuilder::BeginUnit() {
  plan_->units.push_back({.first_segment = static_cast<uint32_t>(plan_->segments.size()),
                          .first_query = static_cast<uint32_t>(plan_->queries.size())});
  return plan_->units.back();
}

void PlanBuilder::AddSegment(AttentionPlan::Unit& unit, const NodePiece& piece) {
  const PrefixForest::Node& node = forest_.nodes()[piece.node];
  const uint32_t page_tokens = forest_.page_tokens();
  const uint32_t first = piece.begin / page_tokens;
  const uint32_t end = (piece.end + page_tokens - 1) / page_tokens;
  plan_->segments.push_back({.first_page = static_cast<uint32_t>(plan_->pages.size()),
                             .offset = piece.begin % page_tokens,
                             .token_count = piece.end - piece.begin});
  plan_->pages.insert(plan_->pages.end(), node.pages.begin() + first, node.pages.begin() + end);
  if (node.children.empty() && piece.end == node.token_count)
    plan_->pages.resize(plan_->pages.size() + kSparePages);
  ++unit.segment_count;
  unit.token_count += piece.end - piece.begin;
}

void PlanBuilder::AddRow(AttentionPlan::Unit& unit, uint32_t row, uint32_t limit) {
  plan_->queries.push_back(row);
  plan_->limits.push_back(limit);
  ++unit.query_count;
}

void PlanBuilder::EmitPath(const Item& item, uint32_t max_tokens) {
  const std::span pieces = std::span(pieces_).subspan(item.first_piece, item.piece_count);
  uint64_t total = 0;
  for (const NodePiece& piece : pieces) total += piece.end - piece.begin;
  if (total == 0) return;
  const uint32_t part_tokens = PartTokens(total, max_tokens);
  size_t piece = 0;
  uint32_t taken = 0;  // of pieces[piece]
  while (piece < pieces.size()) {
    AttentionPlan::Unit& unit = BeginUnit();
    const uint32_t begin = forest_.nodes()[pieces[piece].node].begin + pieces[piece].begin + taken;
    while (piece < pieces.size() && unit.token_count < part_tokens) {
      const NodePiece& from = pieces[piece];
      const uint32_t left = from.end - from.begin - taken;
      const uint32_t count = std::min(left, part_tokens - unit.token_count);
      AddSegment(unit, {from.node, from.begin + taken, from.begin + taken + count});
      taken += count;
      if (count == left) {
        ++piece;
        taken = 0;
      }
    }
    for (size_t i = 0; i < item.sequence_count; ++i) {
      const auto& sequence = forest_.sequences()[sequences_[item.first_sequence + i]];
      const uint32_t path = forest_.PathTokens(sequence.leaf);
      for (uint32_t q = 0; q < sequence.query_tokens; ++q) {
        const uint32_t visible = path - (sequence.query_tokens - 1 - q);
        AddRow(unit, sequence.first_row + q,
               std::min(unit.token_count, visible > begin ? visible - begin : 0));
      }
    }
  }
}

void PlanBuilder::EmitMasked(const Item& item) {
  const std::span pieces = std::span(pieces_).subspan(item.first_piece, item.piece_count);
  AttentionPlan::Unit& unit = BeginUnit();
  for (const NodePiece& piece : pieces) AddSegment(unit, piece);
  const uint64_t words = AttentionPlan::MaskWords(unit.token_count);
  unit.first_mask = plan_->masks.size();
  for (size_t i = 0; i < item.sequence_count; ++i) {
    const auto& sequence = forest_.sequences()[sequences_[item.first_sequence + i]];
    const uint32_t path = forest_.PathTokens(sequence.leaf);
    for (uint32_t q = 0; q < sequence.query_tokens; ++q) {
      const uint32_t visible = path - (sequence.query_tokens - 1 - q);
      AddRow(unit, sequence.first_row + q, unit.token_count);
      plan_->masks.resize(plan_->masks.size() + words);
      uint64_t* const mask = plan_->masks.data() + plan_->masks.size() - words;
      uint32_t at = 0;
      for (const NodePiece& piece : pieces) {
        const uint32_t count = piece.end - piece.begin;
        const PrefixForest::Node& node = forest_.nodes()[piece.node];
        ForestNode on_path = sequence.leaf;
        while (on_path != kNoForestNode && forest_.nodes()[on_path].begin > node.begin)
          on_path = forest_.nodes()[on_path].parent;
        // Nodes without tokens begin where their children do.
        while (on_path != piece.node && on_path != kNoForestNode &&
               forest_.nodes()[on_path].begin == node.begin)
          on_path = forest_.nodes()[on_path].parent;
        const uint32_t begin = node.begin + piece.begin;
        const uint32_t seen =
            on_path != piece.node || visible <= begin ? 0 : std::min(count, visible - begin);
        for (uint32_t t = at; t < at + seen; ++t) mask[t / 64] |= uint64_t{1} << (t % 64);
        at += count;
      }
    }
  }
}

void PlanBuilder::EmitEmpty() {
  std::vector<bool> served(plan_->row_count);
  for (const uint32_t row : plan_->queries) served[row] = true;
  if (std::find(served.begin(), served.end(), false) == served.end()) return;
  AttentionPlan::Unit& unit = BeginUnit();
  for (uint32_t row = 0; row < plan_->row_count; ++row)
    if (!served[row]) AddRow(unit, row, 0);
}

void PlanBuilder::LinkPartials() {
  std::vector<uint32_t> counts(plan_->row_count);
  for (const uint32_t row : plan_->queries) ++counts[row];
  plan_->merge_begin.assign(plan_->row_count + 1, 0);
  for (uint32_t row = 0; row < plan_->row_count; ++row) {
    plan_->merge_begin[row + 1] = plan_->merge_begin[row] + (counts[row] > 1 ? counts[row] : 0);
  }
  plan_->partial_count = plan_->merge_begin.back();
  plan_->merge_list.resize(plan_->partial_count);
  plan_->partials.resize(plan_->queries.size());
  std::vector<uint32_t> next(plan_->merge_begin.begin(), plan_->merge_begin.end() - 1);
  for (size_t i = 0; i < plan_->queries.size(); ++i) {
    const uint32_t row = plan_->queries[i];
    if (counts[row] == 1) {
      plan_->partials[i] = AttentionPlan::kDirect;
      continue;
    }
    // A row's partials lie side by side, in the order of the units.
    plan_->partials[i] = next[row];
    plan_->merge_list[next[row]] = next[row];
    ++next[row];
  }
}

void DepthFirst::Assign(const PrefixForest& forest) {
  const std::vector<PrefixForest::Node>& all = forest.nodes();
  nodes.clear();
  sequences.clear();
  first_sequence.resize(all.size());
  end_sequence.resize(all.size());
  stack_.assign(forest.roots().rbegin(), forest.roots().rend());
  while (!stack_.empty()) {
    const ForestNode index = stack_.back();
    stack_.pop_back();
    const PrefixForest::Node& node = all[index];
    nodes.push_back(index);
    first_sequence[index] = static_cast<uint32_t>(sequences.size());
    sequences.insert(sequences.end(), node.sequences.begin(), node.sequences.end());
    end_sequence[index] = static_cast<uint32_t>(sequences.size());
    stack_.insert(stack_.end(), node.children.rbegin(), node.children.rend());
  }
  // Children come after their parent, the last one's sequences last.
  for (size_t i = nodes.size(); i-- > 0;) {
    const ForestNode parent = all[nodes[i]].parent;
    if (parent != kNoForestNode)
      end_sequence[parent] = std::max(end_sequence[parent], end_sequence[nodes[i]]);
  }
}

}  // namespace turnkeep
