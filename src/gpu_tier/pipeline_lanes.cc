#include "gpu_tier/pipeline_lanes.h"

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "core/status.h"

namespace turnkeep {

void LaneLease::End() {
  if (lane_ == nullptr) return;
  if (lanes_ == nullptr) {
    lane_->first.reset();
    lane_->second.reset();
    lane_.reset();
    return;
  }
  // A stream that cannot be drained (the device is lost) is not used again.
  const bool drained = lane_->first->Synchronize().ok() && lane_->second->Synchronize().ok();
  if (!drained) {
    lane_->first.reset();
    lane_->second.reset();
  }
  std::exchange(lanes_, nullptr)->GiveBack(std::move(lane_));
}

PipelineLanes::~PipelineLanes() {
  absl::MutexLock lock(&mu_);
  TK_CHECK(counters_.leased_bytes == 0 && promised_bytes_ == 0);
}

absl::StatusOr<std::unique_ptr<Lane>> PipelineLanes::MakeLane(Device& device,
                                                              const StagingRing::Options& ring) {
  auto lane = std::make_unique<Lane>();
  TK_ASSIGN_OR_RETURN(lane->ring, StagingRing::Make(device, ring));
  TK_ASSIGN_OR_RETURN(lane->first, device.NewStream());
  TK_ASSIGN_OR_RETURN(lane->second, device.NewStream());
  return lane;
}

absl::StatusOr<LaneLease> PipelineLanes::TakeOwn(Device& device, const StagingRing::Options& ring) {
  TK_ASSIGN_OR_RETURN(auto lane, MakeLane(device, ring));
  return LaneLease(nullptr, std::move(lane));
}

std::unique_ptr<Lane> PipelineLanes::TakeKept(uint64_t slot_bytes, uint64_t bytes) {
  for (auto at = kept_.rbegin(); at != kept_.rend(); ++at) {
    const StagingRing& ring = (*at)->ring;
    if (ring.slot_bytes() < slot_bytes || ring.memory_bytes() < bytes) continue;
    std::unique_ptr<Lane> lane = std::move(*at);
    kept_.erase(std::next(at).base());
    counters_.kept_bytes -= lane->ring.memory_bytes();
    counters_.leased_bytes += lane->ring.memory_bytes();
    ++counters_.reused;
    return lane;
  }
  return nullptr;
}

absl::StatusOr<LaneLease> PipelineLanes::Take(const StagingRing::Options& asked) {
  StagingRing::Options ring = asked;
  // Contexts grow from turn to turn; the next ones shall fit as well.
  ring.total_bytes = std::bit_ceil(asked.total_bytes);
  const uint64_t needed = StagingRing::BytesFor(asked);
  std::vector<std::unique_ptr<Lane>> freed;
  uint64_t bytes = 0;
  {
    absl::MutexLock lock(&mu_);
    if (auto lane = TakeKept(StagingRing::SlotBytes(asked), needed))
      return LaneLease(this, std::move(lane));
    const uint64_t taken = counters_.leased_bytes + promised_bytes_;
    const uint64_t left = options_.budget_bytes - std::min(options_.budget_bytes, taken);
    ring.budget_bytes = std::min(ring.budget_bytes, left);
    bytes = StagingRing::BytesFor(ring);
    if (bytes > left)
      return ResourceExhausted("pipeline lanes: {} bytes needed, {} of {} are in use", bytes, taken,
                               options_.budget_bytes);
    while (counters_.kept_bytes > left - bytes) {
      counters_.kept_bytes -= kept_.front()->ring.memory_bytes();
      freed.push_back(std::move(kept_.front()));
      kept_.erase(kept_.begin());
    }
    promised_bytes_ += bytes;
  }
  freed.clear();  // not under the lock: streams end, memory goes back
  absl::StatusOr<std::unique_ptr<Lane>> lane = MakeLane(device_, ring);
  absl::MutexLock lock(&mu_);
  promised_bytes_ -= bytes;
  if (!lane.ok()) return lane.status();
  TK_CHECK((*lane)->ring.memory_bytes() == bytes);
  counters_.leased_bytes += bytes;
  ++counters_.made;
  return LaneLease(this, *std::move(lane));
}

void PipelineLanes::GiveBack(std::unique_ptr<Lane> lane) {
  const uint64_t bytes = lane->ring.memory_bytes();
  const bool usable = lane->first != nullptr;
  if (!usable) lane.reset();
  absl::MutexLock lock(&mu_);
  counters_.leased_bytes -= bytes;
  if (!usable) return;
  counters_.kept_bytes += bytes;
  kept_.push_back(std::move(lane));
}

PipelineLanes::Counters PipelineLanes::counters() const {
  absl::MutexLock lock(&mu_);
  return counters_;
}

}  // namespace turnkeep
