#include "gpu_tier/two_phase_plan.h"

#include <algorithm>

#include "core/check.h"

namespace turnkeep {

namespace {

// Below this the unused part of a plan does not matter.
constexpr uint64_t kUnusedWords = 1024;

uint32_t PagesFor(uint64_t tokens, uint32_t page_tokens) {
  return static_cast<uint32_t>((tokens + page_tokens - 1) / page_tokens);
}

}  // namespace

void TwoPhasePlan::Build(const PrefixForest& forest, AttentionPlan* plan) {
  plan_ = plan;
  plan->Clear();
  seen_changes_ = forest.change_count();
  marked_.clear();
  owners_.clear();
  for (Member& member : members_) {
    member.path.clear();
    member.own.units.clear();
    member.own = {.units = std::move(member.own.units)};
  }
  for (Node& node : nodes_) {
    node.below.clear();
    node.item.units.clear();
    node.item = {.units = std::move(node.item.units)};
  }
  token_count_ = 0;
  item_count_ = 0;
  unused_words_ = 0;
  for (ForestSequence s = 0; s < forest.sequences().size(); ++s)
    if (forest.sequences()[s].query_tokens > 0) Attach(forest, s);
  // Chunk first.
  std::stable_partition(marked_.begin(), marked_.end(), [](uint32_t id) { return id % 2 == 0; });
  Commit(forest, /*rows_moved=*/true);
}

bool TwoPhasePlan::Follow(const PrefixForest& forest, AttentionPlan* plan, bool* replanned) {
  using Kind = PrefixForest::Change::Kind;
  plan_ = plan;
  const auto changes = forest.ChangesSince(seen_changes_);
  if (!changes.has_value()) return false;
  seen_changes_ = forest.change_count();
  bool rows_moved = false;
  for (const auto& [kind, index] : *changes) {
    if (kind != Kind::kLeave) continue;
    rows_moved = true;
    // An index may have been taken and given up since the last call; then it is not in the plan.
    if (index < members_.size() && !members_[index].path.empty()) Detach(index);
  }
  for (const auto& [kind, index] : *changes)
    if (kind == Kind::kGrow) Grow(forest, index);
  for (const auto& [kind, index] : *changes) {
    if (kind != Kind::kJoin) continue;
    rows_moved = true;
    const bool there = index < members_.size() && !members_[index].path.empty();
    if (forest.sequences()[index].query_tokens > 0 && !there) Attach(forest, index);
  }
  *replanned = Commit(forest, rows_moved) || rows_moved;
  return unused_words_ < HeldWords() / 2 + kUnusedWords;
}

std::span<const ForestSequence> TwoPhasePlan::SequencesOf(uint32_t id) const {
  if (id % 2 == 0) return nodes_[id / 2].below;
  // A sequence's own item lists it alone: its number is where its last node has it.
  const Member& member = members_[id / 2];
  return std::span(nodes_[member.path.back().node].below).first(1);
}

void TwoPhasePlan::MarkItem(uint32_t id, Mark mark) {
  Item& item = ItemAt(id);
  if (item.mark == Mark::kNothing) marked_.push_back(id);
  item.mark = std::max(item.mark, mark);
}

void TwoPhasePlan::MarkEverything() {
  for (ForestNode n = 0; n < nodes_.size(); ++n)
    if (nodes_[n].item.token_count > 0) MarkItem(OfNode(n), Mark::kAll);
  for (ForestSequence s = 0; s < members_.size(); ++s)
    if (members_[s].own.token_count > 0) MarkItem(OfSequence(s), Mark::kAll);
}

void TwoPhasePlan::Attach(const PrefixForest& forest, ForestSequence sequence) {
  if (members_.size() < forest.sequences().size()) members_.resize(forest.sequences().size());
  if (nodes_.size() < forest.nodes().size()) nodes_.resize(forest.nodes().size());
  Member& member = members_[sequence];
  member.query_tokens = forest.sequences()[sequence].query_tokens;
  for (ForestNode node = forest.sequences()[sequence].leaf; node != kNoForestNode;
       node = forest.nodes()[node].parent)
    member.path.push_back({node, 0});
  std::reverse(member.path.begin(), member.path.end());
  for (uint32_t depth = 0; depth < member.path.size(); ++depth) {
    const ForestNode index = member.path[depth].node;
    Node& node = nodes_[index];
    node.depth = depth;
    node.token_count = forest.nodes()[index].token_count;
    node.below.push_back(sequence);
    if (node.below.size() == 2) {
      MarkItem(OfSequence(node.below[0]), Mark::kAll);
      MarkItem(OfNode(index), Mark::kAll);
    } else if (node.below.size() > 2) {
      MarkItem(OfNode(index), Mark::kRows);
    }
  }
  MarkItem(OfSequence(sequence), Mark::kAll);
}

void TwoPhasePlan::Detach(ForestSequence sequence) {
  Member& member = members_[sequence];
  for (const Step& step : member.path) {
    Node& node = nodes_[step.node];
    std::erase(node.below, sequence);
    if (node.below.size() == 1) {
      MarkItem(OfSequence(node.below[0]), Mark::kAll);
      MarkItem(OfNode(step.node), Mark::kAll);
    } else if (node.below.size() > 1) {
      MarkItem(OfNode(step.node), Mark::kRows);
    }
  }
  member.path.clear();
  member.query_tokens = 0;
  MarkItem(OfSequence(sequence), Mark::kAll);
}

void TwoPhasePlan::Grow(const PrefixForest& forest, ForestNode index) {
  // Not in the plan: nobody is below it, or somebody who joins with this call.
  if (index >= nodes_.size() || nodes_[index].below.empty()) return;
  Node& node = nodes_[index];
  const uint32_t now = forest.nodes()[index].token_count;
  if (now == node.token_count) return;  // followed with an earlier change
  const Mark mark = node.token_count == 0 ? Mark::kAll : Mark::kGrown;
  node.token_count = now;
  MarkItem(node.below.size() > 1 ? OfNode(index) : OfSequence(node.below[0]), mark);
  // One query sees all before it; of several, the first see more of what lies above than before.
  for (const ForestSequence s : node.below) {
    if (members_[s].query_tokens == 1) continue;
    MarkItem(OfSequence(s), Mark::kRows);
    for (const Step& step : members_[s].path)
      if (nodes_[step.node].below.size() > 1) MarkItem(OfNode(step.node), Mark::kRows);
  }
}

uint32_t TwoPhasePlan::TokensOf(const PrefixForest& forest, uint32_t id) const {
  if (id % 2 == 0) {
    const bool shared = nodes_[id / 2].below.size() > 1;
    return shared ? forest.nodes()[id / 2].token_count : 0;
  }
  uint32_t tokens = 0;
  for (const Step& step : members_[id / 2].path)
    if (nodes_[step.node].below.size() == 1) tokens += forest.nodes()[step.node].token_count;
  return tokens;
}

bool TwoPhasePlan::Commit(const PrefixForest& forest, bool rows_moved) {
  for (const uint32_t id : marked_) {
    Item& item = ItemAt(id);
    item.next_tokens = TokensOf(forest, id);
    token_count_ += item.next_tokens;
    token_count_ -= item.token_count;
    item_count_ += item.next_tokens > 0 ? 1 : 0;
    item_count_ -= item.token_count > 0 ? 1 : 0;
  }
  const uint32_t split = SplitTokens(options_, item_count_, token_count_);
  if (split != split_tokens_) {
    split_tokens_ = split;
    const size_t changed = marked_.size();
    MarkEverything();
    for (size_t i = changed; i < marked_.size(); ++i)
      ItemAt(marked_[i]).next_tokens = ItemAt(marked_[i]).token_count;
  }
  bool units_moved = false;
  for (const uint32_t id : marked_) {
    Item& item = ItemAt(id);
    const bool all = item.mark == Mark::kAll || !GrowInPlace(forest, id);
    if (all) {
      Drop(item);
      item.token_count = item.next_tokens;
      if (item.token_count > 0) Emit(forest, id);
      units_moved = true;
    } else {
      WriteRows(forest, id);
    }
    item.mark = Mark::kNothing;
  }
  marked_.clear();
  if (units_moved || rows_moved) LinkRows(forest);
  return units_moved;
}

bool TwoPhasePlan::GrowInPlace(const PrefixForest& forest, uint32_t id) {
  Item& item = ItemAt(id);
  const uint32_t grown = item.next_tokens - item.token_count;
  if (grown == 0) return true;
  const uint32_t part_tokens = PartTokens(item.next_tokens, split_tokens_);
  if (part_tokens != item.part_tokens ||
      (item.next_tokens + uint64_t{part_tokens} - 1) / part_tokens != item.units.size())
    return false;
  // The item ends with the leaf that grew.
  const ForestNode leaf = id % 2 == 0 ? id / 2 : members_[id / 2].path.back().node;
  const PrefixForest::Node& node = forest.nodes()[leaf];
  AttentionPlan::Unit& unit = plan_->units[item.units.back()];
  AttentionPlan::Segment& segment = plan_->segments[unit.first_segment + unit.segment_count - 1];
  const uint32_t page_tokens = forest.page_tokens();
  const uint32_t before = PagesFor(node.token_count - grown, page_tokens);
  const uint32_t after = PagesFor(node.token_count, page_tokens);
  const uint32_t held = PagesFor(segment.offset + segment.token_count, page_tokens);
  if (after - before > item.page_room) {
    unused_words_ += held + item.page_room;
    const auto first = static_cast<uint32_t>(plan_->pages.size());
    item.page_room = after - before + kSparePages + held / 4;
    plan_->pages.resize(plan_->pages.size() + held + item.page_room);
    std::copy_n(plan_->pages.begin() + segment.first_page, held, plan_->pages.begin() + first);
    segment.first_page = first;
  }
  std::copy(node.pages.begin() + before, node.pages.begin() + after,
            plan_->pages.begin() + segment.first_page + held);
  item.page_room -= after - before;
  item.token_count = item.next_tokens;
  segment.token_count += grown;
  unit.token_count += grown;
  return true;
}

void TwoPhasePlan::Drop(Item& item) {
  while (!item.units.empty()) {
    const uint32_t unit = item.units.back();
    item.units.pop_back();
    const AttentionPlan::Unit& gone = plan_->units[unit];
    for (uint32_t i = 0; i < gone.segment_count; ++i) {
      const AttentionPlan::Segment& segment = plan_->segments[gone.first_segment + i];
      unused_words_ += 1 + PagesFor(segment.token_count, options_.shape.page_tokens);
    }
    unused_words_ += item.row_room;
    // The last unit takes its place.
    plan_->units[unit] = plan_->units.back();
    owners_[unit] = owners_.back();
    if (unit + 1 != plan_->units.size())
      ItemAt(owners_[unit].item).units[owners_[unit].part] = unit;
    plan_->units.pop_back();
    owners_.pop_back();
  }
}

void TwoPhasePlan::CollectPieces(const PrefixForest& forest, uint32_t id) {
  pieces_.clear();
  const auto add = [&](ForestNode node) {
    if (const uint32_t tokens = forest.nodes()[node].token_count; tokens > 0)
      pieces_.push_back({node, 0, tokens});
  };
  if (id % 2 == 0) return add(id / 2);
  for (const Step& step : members_[id / 2].path)
    if (nodes_[step.node].below.size() == 1) add(step.node);
}

void TwoPhasePlan::Emit(const PrefixForest& forest, uint32_t id) {
  Item& item = ItemAt(id);
  CollectPieces(forest, id);
  item.part_tokens = PartTokens(item.token_count, split_tokens_);
  item.row_room = 0;
  size_t piece = 0;
  uint32_t taken = 0;  // of pieces_[piece]
  while (piece < pieces_.size()) {
    owners_.push_back({id, static_cast<uint32_t>(item.units.size())});
    item.units.push_back(static_cast<uint32_t>(plan_->units.size()));
    AttentionPlan::Unit unit{.first_segment = static_cast<uint32_t>(plan_->segments.size())};
    while (piece < pieces_.size() && unit.token_count < item.part_tokens) {
      const NodePiece& from = pieces_[piece];
      const uint32_t left = from.end - taken;
      const uint32_t count = std::min(left, item.part_tokens - unit.token_count);
      AddSegment(forest, {from.node, taken, taken + count}, item);
      ++unit.segment_count;
      unit.token_count += count;
      taken = count == left ? 0 : taken + count;
      piece += count == left ? 1 : 0;
    }
    plan_->units.push_back(unit);
  }
  WriteRows(forest, id);
}

void TwoPhasePlan::AddSegment(const PrefixForest& forest, const NodePiece& piece, Item& item) {
  const PrefixForest::Node& node = forest.nodes()[piece.node];
  const uint32_t page_tokens = forest.page_tokens();
  plan_->segments.push_back({.first_page = static_cast<uint32_t>(plan_->pages.size()),
                             .offset = piece.begin % page_tokens,
                             .token_count = piece.end - piece.begin});
  plan_->pages.insert(plan_->pages.end(), node.pages.begin() + piece.begin / page_tokens,
                      node.pages.begin() + PagesFor(piece.end, page_tokens));
  const bool grows = node.children.empty() && piece.end == node.token_count;
  item.page_room = grows ? kSparePages : 0;
  plan_->pages.resize(plan_->pages.size() + item.page_room);
}

void TwoPhasePlan::WriteRows(const PrefixForest& forest, uint32_t id) {
  Item& item = ItemAt(id);
  if (item.units.empty()) return;
  const bool of_node = id % 2 == 0;
  const std::span<const ForestSequence> sequences = SequencesOf(id);
  uint32_t rows = 0;
  for (const ForestSequence s : sequences) {
    Member& member = members_[s];
    if (of_node) member.path[nodes_[id / 2].depth].first_row = rows;
    rows += member.query_tokens;
  }
  const bool larger = rows > item.row_room;
  if (larger) {
    unused_words_ += uint64_t{item.row_room} * item.units.size();
    item.row_room = of_node ? rows + rows / 2 : rows;
  }
  ForestNode first = id / 2;
  if (!of_node) {
    const auto& path = members_[id / 2].path;
    first = std::find_if(path.begin(), path.end(), [&](const Step& step) {
              return nodes_[step.node].below.size() == 1;
            })->node;
  }
  uint32_t begin = forest.nodes()[first].begin;
  for (const uint32_t index : item.units) {
    AttentionPlan::Unit& unit = plan_->units[index];
    if (larger) {
      unit.first_query = static_cast<uint32_t>(plan_->queries.size());
      plan_->queries.resize(plan_->queries.size() + item.row_room);
      plan_->limits.resize(plan_->queries.size());
      plan_->partials.resize(plan_->queries.size());
    }
    unit.query_count = rows;
    uint32_t at = unit.first_query;
    for (const ForestSequence s : sequences) {
      const PrefixForest::Sequence& sequence = forest.sequences()[s];
      const uint32_t path_tokens = forest.PathTokens(sequence.leaf);
      for (uint32_t q = sequence.query_tokens; q-- > 0;) {
        const uint32_t visible = path_tokens - q;
        plan_->limits[at++] = std::min(unit.token_count, visible > begin ? visible - begin : 0);
      }
    }
    begin += unit.token_count;
  }
}

void TwoPhasePlan::LinkRows(const PrefixForest& forest) {
  plan_->row_count = forest.row_count();
  plan_->merge_begin.assign(1, 0);
  uint32_t partials = 0;
  for (ForestSequence s = 0; s < members_.size(); ++s) {
    const Member& member = members_[s];
    if (member.path.empty()) continue;
    size_t parts = member.own.units.size();
    for (const Step& step : member.path) parts += nodes_[step.node].item.units.size();
    TK_CHECK(parts > 0);  // a path has as many tokens as queries at least
    const uint32_t row = forest.sequences()[s].first_row;
    for (uint32_t q = 0; q < member.query_tokens; ++q) {
      const auto link = [&](uint32_t unit, uint32_t offset) {
        const uint32_t at = plan_->units[unit].first_query + offset + q;
        plan_->queries[at] = row + q;
        plan_->partials[at] = parts == 1 ? AttentionPlan::kDirect : partials++;
      };
      for (const Step& step : member.path)
        for (const uint32_t unit : nodes_[step.node].item.units) link(unit, step.first_row);
      for (const uint32_t unit : member.own.units) link(unit, 0);
      plan_->merge_begin.push_back(partials);
    }
  }
  plan_->partial_count = partials;
  const size_t known = plan_->merge_list.size();
  plan_->merge_list.resize(partials);
  for (size_t i = known; i < partials; ++i) plan_->merge_list[i] = static_cast<uint32_t>(i);
}

}  // namespace turnkeep
