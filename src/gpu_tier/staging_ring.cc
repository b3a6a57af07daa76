#include "gpu_tier/staging_ring.h"

#include <algorithm>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

absl::StatusOr<StagingRing> StagingRing::Make(Device& device, const Options& options) {
  StagingRing ring;
  ring.slot_bytes_ =
      RoundUp(std::max({options.piece_bytes, options.largest_page_bytes, uint64_t{1}}),
              kStagedPageAlignment);
  // A piece may leave up to a page of its slot empty.
  const uint64_t useful = 2 * options.total_bytes / ring.slot_bytes_ + 1;
  const uint64_t count =
      std::clamp<uint64_t>(std::min(options.budget_bytes / ring.slot_bytes_, useful),
                           kMinStagingSlots, kMaxStagingSlots);
  TK_ASSIGN_OR_RETURN(ring.memory_, device.Allocate(count * ring.slot_bytes_));
  for (uint64_t i = 0; i < count; ++i) {
    StagingSlot slot{.data = ring.memory_.data() + i * ring.slot_bytes_};
    TK_ASSIGN_OR_RETURN(slot.filled, device.NewEvent());
    TK_ASSIGN_OR_RETURN(slot.emptied, device.NewEvent());
    ring.slots_.push_back(std::move(slot));
  }
  return ring;
}

std::vector<PieceRange> CutIntoPieces(std::span<const uint64_t> page_bytes, uint64_t slot_bytes) {
  std::vector<PieceRange> pieces;
  for (size_t i = 0; i < page_bytes.size(); ++i) {
    const uint64_t bytes = RoundUp(page_bytes[i], kStagedPageAlignment);
    TK_CHECK(bytes <= slot_bytes);
    if (pieces.empty() || pieces.back().bytes + bytes > slot_bytes) pieces.push_back({i, i, 0});
    pieces.back().end = i + 1;
    pieces.back().bytes += bytes;
  }
  return pieces;
}

}  // namespace turnkeep
