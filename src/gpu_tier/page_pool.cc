#include "gpu_tier/page_pool.h"

#include <algorithm>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {

absl::StatusOr<std::unique_ptr<PagePool>> PagePool::Make(Device& device, const Options& options) {
  const uint64_t slot_bytes = RoundUp(std::max<uint64_t>(options.slot_bytes, 1), 256);
  const uint64_t count = options.budget_bytes / slot_bytes;
  if (count == 0)
    return InvalidArgument("page pool: a budget of {} bytes holds no chunk of {}",
                           options.budget_bytes, slot_bytes);
  auto pool = std::unique_ptr<PagePool>(new PagePool(device));
  TK_ASSIGN_OR_RETURN(pool->memory_, device.Allocate(count * slot_bytes));
  pool->slot_bytes_ = slot_bytes;
  pool->slot_count_ = count;
  absl::MutexLock lock(&pool->mu_);
  pool->slots_.resize(count);
  return pool;
}

PagePool::~PagePool() {
  // Pins point here; streams may still read the memory.
  std::vector<EventPtr> running;
  {
    absl::MutexLock lock(&mu_);
    for (const Slot& slot : slots_) {
      TK_CHECK(slot.pins == 0);
      if (slot.written != nullptr) running.push_back(slot.written);
      running.insert(running.end(), slot.uses.begin(), slot.uses.end());
    }
  }
  for (const EventPtr& event : running) (void)event->Wait();
}

absl::StatusOr<PagePool::Pin> PagePool::Find(const ChunkId& id) {
  absl::StatusOr<Pin> pin = Hold(id);
  absl::MutexLock lock(&mu_);
  ++(pin.ok() ? counters_.hits : counters_.misses);
  if (pin.ok()) used_.splice(used_.begin(), used_, slots_[pin->slot_].used);
  return pin;
}

absl::StatusOr<PagePool::Pin> PagePool::Hold(const ChunkId& id) {
  absl::MutexLock lock(&mu_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || !slots_[found->second].filled)
    return NotFound("chunk {} is not in the page pool", id.ShortHex());
  ++slots_[found->second].pins;
  return Pin(this, found->second, nullptr);
}

size_t PagePool::FreeSlot() const {
  for (size_t i = 0; i < slots_.size(); ++i)
    if (!slots_[i].taken && slots_[i].pins == 0) return i;
  for (auto at = used_.rbegin(); at != used_.rend(); ++at)
    if (slots_[*at].pins == 0) return *at;
  return slots_.size();
}

void PagePool::Empty(Slot& slot) {
  by_id_.erase(slot.chunk.id);
  if (slot.filled) used_.erase(slot.used);
  slot.taken = false;
  slot.filled = false;
}

absl::StatusOr<PagePool::Pin> PagePool::Insert(const Chunk& chunk, DeviceStream& filler) {
  if (chunk.bytes > slot_bytes_)
    return InvalidArgument("page pool: chunk of {} bytes, slots have {}", chunk.bytes, slot_bytes_);
  const ChunkId& id = chunk.id;
  size_t number = 0;
  std::vector<EventPtr> before;
  {
    absl::MutexLock lock(&mu_);
    if (by_id_.contains(id)) return AlreadyExists("chunk {} is in the page pool", id.ShortHex());
    number = FreeSlot();
    if (number == slots_.size())
      return ResourceExhausted("page pool: all {} chunks are pinned", slots_.size());
    Slot& slot = slots_[number];
    if (slot.taken) {
      Empty(slot);
      ++counters_.evictions;
    }
    before = std::exchange(slot.uses, {});
    if (slot.written != nullptr) before.push_back(std::exchange(slot.written, nullptr));
    slot.chunk = chunk;
    slot.taken = true;
    slot.pins = 1;
    by_id_[id] = number;
  }
  Pin pin(this, number, &filler);
  for (const EventPtr& event : before) {
    const absl::Status status = filler.WaitFor(*event);
    if (status.ok()) continue;
    absl::MutexLock lock(&mu_);  // nothing was written: the next one waits for them
    slots_[number].uses = std::move(before);
    return status;
  }
  return pin;
}

bool PagePool::Contains(const ChunkId& id) const {
  absl::MutexLock lock(&mu_);
  const auto found = by_id_.find(id);
  return found != by_id_.end() && slots_[found->second].filled;
}

absl::Status PagePool::Drop(const ChunkId& id) {
  absl::MutexLock lock(&mu_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return NotFound("chunk {} is not in the page pool", id.ShortHex());
  Slot& slot = slots_[found->second];
  if (slot.pins > 0) return FailedPrecondition("chunk {} has {} pins", id.ShortHex(), slot.pins);
  Empty(slot);
  return absl::OkStatus();
}

std::vector<PagePool::Chunk> PagePool::Residency() const {
  absl::MutexLock lock(&mu_);
  std::vector<Chunk> out;
  for (const size_t number : used_) out.push_back(slots_[number].chunk);
  return out;
}

PagePool::Counters PagePool::counters() const {
  absl::MutexLock lock(&mu_);
  return counters_;
}

void PagePool::AddUse(size_t slot, EventPtr event) {
  absl::MutexLock lock(&mu_);
  auto& uses = slots_[slot].uses;
  std::erase_if(uses, [](const EventPtr& use) { return use->Ready(); });
  uses.push_back(std::move(event));
}

void PagePool::Unpin(size_t number, bool inserting) {
  absl::MutexLock lock(&mu_);
  Slot& slot = slots_[number];
  TK_CHECK(slot.pins > 0);
  --slot.pins;
  if (inserting) Empty(slot);
}

PagePool::Pin::~Pin() {
  if (pool_ == nullptr) return;
  // Writes of an insert that is given up may still run; who fills the slot next waits for them.
  if (filler_ != nullptr && !EndedOn(*filler_).ok()) (void)filler_->Synchronize();
  pool_->Unpin(slot_, filler_ != nullptr);
}

std::byte* PagePool::Pin::data() const {
  return pool_->memory_.data() + slot_ * pool_->slot_bytes_;
}

uint64_t PagePool::Pin::position() const {
  absl::MutexLock lock(&pool_->mu_);
  return pool_->slots_[slot_].chunk.position;
}

absl::Status PagePool::Pin::ReadOn(DeviceStream& stream) const {
  EventPtr written;
  {
    absl::MutexLock lock(&pool_->mu_);
    written = pool_->slots_[slot_].written;
  }
  return written == nullptr ? absl::OkStatus() : stream.WaitFor(*written);
}

absl::Status PagePool::Pin::EndedOn(DeviceStream& stream) const {
  TK_ASSIGN_OR_RETURN(std::shared_ptr<DeviceEvent> event, pool_->device_.NewEvent());
  TK_RETURN_IF_ERROR(stream.Record(*event));
  pool_->AddUse(slot_, std::move(event));
  return absl::OkStatus();
}

absl::Status PagePool::Pin::FilledOn(DeviceStream& stream) {
  if (filler_ == nullptr) return FailedPrecondition("page pool: the chunk is filled already");
  TK_ASSIGN_OR_RETURN(std::shared_ptr<DeviceEvent> event, pool_->device_.NewEvent());
  TK_RETURN_IF_ERROR(stream.Record(*event));
  filler_ = nullptr;
  absl::MutexLock lock(&pool_->mu_);
  Slot& slot = pool_->slots_[slot_];
  slot.written = std::move(event);
  slot.filled = true;
  pool_->used_.push_front(slot_);
  slot.used = pool_->used_.begin();
  return absl::OkStatus();
}

}  // namespace turnkeep
