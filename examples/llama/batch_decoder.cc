#include "llama/batch_decoder.h"

#include <utility>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep::llama {

absl::StatusOr<std::unique_ptr<BatchDecoder>> BatchDecoder::Create(Engine* engine,
                                                                   const PagedKvCache* cache,
                                                                   std::string_view planner) {
  TK_ASSIGN_OR_RETURN(auto made, MakeAttentionPlanner(planner, {.shape = engine->ShapeOf(*cache)}));
  return std::unique_ptr<BatchDecoder>(new BatchDecoder(engine, std::move(made)));
}

void BatchDecoder::Join(Sequence* sequence, uint32_t tokens) {
  members_.push_back({sequence, tokens});
  forest_.reset();
}

void BatchDecoder::LeaveAll() {
  members_.clear();
  forest_.reset();
}

absl::Status BatchDecoder::Step(std::span<const uint32_t> tokens, std::span<float> logits) {
  TK_CHECK(tokens.size() == members_.size());
  for (const Member& member : members_)
    TK_RETURN_IF_ERROR(member.sequence->Reserve(size_t{member.tokens} + 1));
  std::vector<Engine::Row> rows;
  for (size_t i = 0; i < members_.size(); ++i) {
    rows.push_back({members_[i].sequence, tokens[i], members_[i].tokens});
    ++members_[i].tokens;
  }
  TK_RETURN_IF_ERROR(FollowTables());
  return engine_->Decode(rows, planner_->Plan(*forest_), logits);
}

// The forest of the block tables as they are now; leaves that only grew are extended.
absl::Status BatchDecoder::FollowTables() {
  if (forest_) {
    for (uint32_t i = 0; i < members_.size(); ++i) {
      const ForestNode leaf = forest_->sequences()[i].leaf;
      const PrefixForest::Node& node = forest_->nodes()[leaf];
      const size_t held = node.begin / forest_->page_tokens() + node.pages.size();
      TK_RETURN_IF_ERROR(
          forest_->Extend(leaf, 1, std::span(members_[i].sequence->table().pages).subspan(held)));
    }
    return absl::OkStatus();
  }
  std::vector<std::vector<uint32_t>> tables;
  std::vector<uint32_t> tokens;
  for (const Member& member : members_) {
    tables.push_back(member.sequence->table().pages);
    tokens.push_back(member.tokens);
  }
  const std::vector<uint32_t> queries(members_.size(), 1);
  TK_ASSIGN_OR_RETURN(
      forest_, ForestOfBlockTables(members_[0].sequence->cache()->options().page_tokens, tables,
                                   tokens, queries));
  planner_->Forget();
  return absl::OkStatus();
}

}  // namespace turnkeep::llama
