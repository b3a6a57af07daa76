// One save, from plan to commit (save_path.cc).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/chunk_header.h"
#include "store/store_impl.h"

namespace turnkeep {

class SaveTask final : public SaveOperation {
 public:
  SaveTask(StoreImpl* store, const Tenant* tenant, const LayoutInfo* layout, std::string session);
  ~SaveTask() override;

  const KvLayout& layout() const override { return layout_->layout; }
  uint64_t known_tokens() const override { return known_tokens_; }
  uint64_t accepted_tokens() const override { return accepted_tokens_; }
  std::span<const ChunkToSave> chunks() const override { return chunks_; }
  std::span<const ChunkSlot> slots() const override { return slots_; }
  void Commit(std::function<void(absl::StatusOr<CommitResult>)> done) override;

 private:
  friend class StoreImpl;

  // All but SealHeaders are called under the store's lock, and assert it: the analysis cannot
  // see that store_->state_.mu is the caller's.

  // A chunk that the engine must provide.
  struct NewChunk {
    ChunkIndex chunk = kNoChunk;
    ChunkHeader header;  // all but the layer digests and the epoch, until commit
  };

  absl::Status CheckGeneration();
  // What of the prompt is known, and what must be provided.
  absl::Status Plan(const SaveRequest& request);
  struct KeptPrefix {
    std::vector<Span> spans;
    ChunkId binding;  // the parent of what follows them
  };
  absl::StatusOr<KeptPrefix> PrefixToKeep(const Prompt& prompt);
  absl::Status PlanRest(const SaveRequest& request, const ChunkId& binding);
  absl::Status PlanImport(const ImportRequest& request);
  void KeepSpan(const Span& span);
  void AddNewChunk(ChunkIndex chunk, uint64_t token_begin, uint64_t position_base,
                   std::vector<uint32_t> tokens, BlockHash hash);
  // Slots for the new chunks, in order, as far as there is room. True if all have one.
  bool TakeSlots();
  // Gives up the chunks that got no slot. ResourceExhausted if nothing is left to save.
  absl::Status CutToSlots();
  void SealHeaders();
  absl::Status Publish(CommitResult* result, size_t* first_changed_span);
  // The turn, of which a restore may have told already, uses what is held.
  void TellTurnBegins();
  // It has ended, as far as the store knows: what the session shows, or what was held, waits for
  // the next.
  void TellTurnEnded();
  void Release();

  StoreImpl* const store_;
  const Tenant* const tenant_;
  const LayoutInfo* const layout_;
  const std::string session_;
  uint64_t expected_generation_ = 0;
  std::optional<absl::Duration> ttl_;
  bool all_or_nothing_ = false;  // an import is not cut short

  std::vector<Span> view_;            // the session's after the commit
  std::vector<ChunkIndex> held_;      // known chunks that the view relies on
  std::vector<NewChunk> new_chunks_;  // parallel to chunks_ and (as far as it goes) slots_
  std::vector<ChunkToSave> chunks_;
  std::vector<ChunkSlot> slots_;
  ChunkIndex parent_ref_ = kNoChunk;  // what the first chunk after the kept spans follows
  TurnInfo turn_;                     // number 0: there is none (an import)
  int64_t begun_ns_ = 0;
  uint64_t known_tokens_ = 0;
  uint64_t accepted_tokens_ = 0;
  uint64_t prompt_tokens_ = 0;
  bool published_ = false;
  bool released_ = false;
};

}  // namespace turnkeep
