#include "gpu_tier/staging_ring.h"

#include <algorithm>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

uint64_t StagingRing::SlotBytes(const Options& options) {
  return RoundUp(std::max({options.piece_bytes, options.largest_page_bytes, uint64_t{1}}),
                 kStagedPageAlignment);
}

uint64_t StagingRing::BytesFor(const Options& options) {
  const uint64_t slot_bytes = SlotBytes(options);
  // A piece may leave up to a page of its slot empty.
  const uint64_t useful = 2 * options.total_bytes / slot_bytes + 1;
  return slot_bytes * std::clamp<uint64_t>(std::min(options.budget_bytes / slot_bytes, useful),
                                           kMinStagingSlots, kMaxStagingSlots);
}

absl::StatusOr<StagingRing> StagingRing::Make(Device& device, const Options& options) {
  StagingRing ring;
  ring.slot_bytes_ = SlotBytes(options);
  TK_ASSIGN_OR_RETURN(ring.memory_, device.Allocate(BytesFor(options)));
  const uint64_t count = ring.memory_.size() / ring.slot_bytes_;
  for (uint64_t i = 0; i < count; ++i) {
    StagingSlot slot{.data = ring.memory_.data() + i * ring.slot_bytes_};
    TK_ASSIGN_OR_RETURN(slot.filled, device.NewEvent());
    TK_ASSIGN_OR_RETURN(slot.emptied, device.NewEvent());
    ring.slots_.push_back(std::move(slot));
  }
  return ring;
}

std::vector<MovedPiece> CutIntoPieces(std::span<const PageToMove> pages, uint64_t slot_bytes) {
  std::vector<MovedPiece> pieces;
  for (const PageToMove& page : pages) {
    const uint64_t bytes = RoundUp(page.bytes, kStagedPageAlignment);
    TK_CHECK(bytes <= slot_bytes);
    if (pieces.empty() || pieces.back().pooled != page.pooled ||
        pieces.back().bytes + bytes > slot_bytes) {
      pieces.push_back({.pooled = page.pooled});
    }
    pieces.back().pages.push_back(page.index);
    pieces.back().bytes += bytes;
  }
  return pieces;
}

}  // namespace turnkeep
