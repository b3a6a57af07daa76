#include "host_tier/arena.h"

#include <algorithm>
#include <array>

#include "core/check.h"
#include "core/status.h"
#include "host_tier/slot_bitmap.h"

namespace turnkeep {
namespace {

// Under a small cap few classes must not take everything with their first segments.
constexpr uint64_t kMinSegmentsInCapacity = 64;
// Under a large cap segments grow, so that descriptors stay bounded.
constexpr uint64_t kMaxFullSegmentsInCapacity = kMaxArenaSegments / 4;
// Slots of a segment for slots that are large beside segment_bytes.
constexpr uint64_t kMinSlotsPerSegment = 4;
// Empty segments are kept up to this part of the cap: more than an eviction from the high to the
// low watermark empties.
constexpr uint64_t kKeptEmptyDivisor = 8;

std::string NormalPages() {
  return fmt::format("4 KiB pages (transparent huge pages of shared memory: {})",
                     TransparentHugePagesOfSharedMemory());
}

}  // namespace

struct HostArena::Segment {
  Segment(SharedMemory shared_memory, SegmentInfo segment_info, uint32_t slot_count)
      : memory(std::move(shared_memory)), info(segment_info), slots(slot_count) {}

  uint32_t used_count() const { return slots.slot_count() - slots.free_count(); }

  SharedMemory memory;
  const SegmentInfo info;
  SlotBitmap slots;
};

struct HostArena::SizeClass {
  // Segments with used and with free slots: the fullest (fewest free) first, older ones
  // before newer ones.
  std::set<std::pair<uint32_t, uint32_t>> partial;
  std::vector<Segment*> empty;  // kept against thrash; the last to run empty is used first
  uint32_t segment_count = 0;
  uint64_t segment_bytes = 0;
  uint64_t slot_count = 0;
  uint64_t used_slots = 0;

  static std::pair<uint32_t, uint32_t> RankOf(const Segment& segment) {
    return {segment.slots.free_count(), segment.info.id};
  }
};

// Segments by id, readable while the owner adds and removes others: two levels of arrays
// that never move. An entry is set before its slots are given out and cleared after the last
// came back, so a holder of a slot always finds it.
class HostArena::SegmentTable {
 public:
  ~SegmentTable() {
    for (auto& page : pages_) delete page.load(std::memory_order_relaxed);
  }

  // Null when there is none.
  Segment* Get(uint32_t id) const {
    if (id >= kMaxArenaSegmentIds) return nullptr;
    // Acquire pairs with Set: the reader may have the id from a path that does not
    // synchronise with the owner.
    const Page* const page = pages_[id / kPageEntries].load(std::memory_order_acquire);
    if (page == nullptr) return nullptr;
    return page->entries[id % kPageEntries].load(std::memory_order_acquire);
  }

  // Owns nothing; the arena deletes segments.
  void Set(uint32_t id, Segment* segment) {
    std::atomic<Page*>& slot = pages_[id / kPageEntries];
    Page* page = slot.load(std::memory_order_relaxed);
    if (page == nullptr) {
      page = new Page;
      slot.store(page, std::memory_order_release);
    }
    page->entries[id % kPageEntries].store(segment, std::memory_order_release);
  }

  template <typename Visitor>
  void ForEach(uint32_t end_id, Visitor&& visit) const {
    for (uint32_t first = 0; first < end_id; first += kPageEntries) {
      const Page* const page = pages_[first / kPageEntries].load(std::memory_order_relaxed);
      if (page == nullptr) continue;
      for (const auto& entry : page->entries) {
        if (Segment* const segment = entry.load(std::memory_order_relaxed)) visit(segment);
      }
    }
  }

 private:
  static constexpr uint32_t kPageEntries = 4096;
  struct Page {
    std::array<std::atomic<Segment*>, kPageEntries> entries{};
  };
  std::array<std::atomic<Page*>, kMaxArenaSegmentIds / kPageEntries> pages_{};
};

HostArena::Retired::Retired(SharedMemory memory, std::atomic<uint64_t>* segment_bytes,
                            std::atomic<uint64_t>* retired_bytes)
    : memory_(std::move(memory)), segment_bytes_(segment_bytes), retired_bytes_(retired_bytes) {
  retired_bytes_->fetch_add(memory_.bytes(), std::memory_order_relaxed);
}

HostArena::Retired::Retired(Retired&& other) noexcept = default;

HostArena::Retired::~Retired() {
  const uint64_t bytes = memory_.bytes();
  if (bytes == 0) return;  // moved from
  memory_ = SharedMemory();
  // After the unmapping, so that the cap holds at every moment.
  retired_bytes_->fetch_sub(bytes, std::memory_order_relaxed);
  segment_bytes_->fetch_sub(bytes, std::memory_order_relaxed);
}

absl::StatusOr<std::unique_ptr<HostArena>> HostArena::Open(const Options& options) {
  if (options.capacity_bytes < kBlockBytes) {
    return InvalidArgument("host arena: capacity_bytes {} is less than one block of {}",
                           options.capacity_bytes, kBlockBytes);
  }
  if (options.segment_bytes < kBlockBytes || options.segment_bytes > kMaxSegmentBytes) {
    return InvalidArgument("host arena: segment_bytes {} is not in {}..{}", options.segment_bytes,
                           kBlockBytes, kMaxSegmentBytes);
  }
  return std::unique_ptr<HostArena>(new HostArena(options));
}

HostArena::HostArena(const Options& options)
    : capacity_bytes_(RoundDown(options.capacity_bytes, kBlockBytes)),
      segment_bytes_option_(options.segment_bytes),
      observer_(options.observer),
      huge_pages_(options.huge_pages),
      page_notice_(options.huge_pages ? "huge pages" : NormalPages()),
      table_(std::make_unique<SegmentTable>()) {}

HostArena::~HostArena() {
  table_->ForEach(next_segment_id_, [this](Segment* segment) {
    if (observer_ != nullptr) observer_->OnSegmentDestroyed(segment->info);
    delete segment;
  });
}

uint64_t HostArena::AvailableBytes() const {
  const uint64_t taken_bytes = segment_bytes_.load(std::memory_order_relaxed);
  return capacity_bytes_ > taken_bytes ? capacity_bytes_ - taken_bytes : 0;
}

uint64_t HostArena::SegmentBytesFor(uint64_t slot_bytes) const {
  uint64_t bytes = std::min(segment_bytes_option_, capacity_bytes_ / kMinSegmentsInCapacity);
  bytes = std::max(bytes, capacity_bytes_ / kMaxFullSegmentsInCapacity);
  uint64_t slot_count = bytes / slot_bytes;
  if (slot_count < kMinSlotsPerSegment) {
    slot_count = std::clamp<uint64_t>(capacity_bytes_ / 4 / slot_bytes, 1, kMinSlotsPerSegment);
  }
  return slot_count * slot_bytes;
}

absl::StatusOr<SlotRef> HostArena::Allocate(uint32_t tenant, uint64_t slot_bytes) {
  TK_CHECK(slot_bytes > 0 && slot_bytes % kBlockBytes == 0);
  const ClassKey key(tenant, slot_bytes);
  Segment* segment = nullptr;
  auto it = classes_.find(key);
  if (it != classes_.end() && !it->second->partial.empty()) {
    const auto fullest = it->second->partial.begin();
    segment = table_->Get(fullest->second);
    it->second->partial.erase(fullest);
  } else if (it != classes_.end() && !it->second->empty.empty()) {
    segment = it->second->empty.back();
    it->second->empty.pop_back();
    empty_segments_.erase(segment->info.id);
    empty_bytes_ -= segment->info.memory.size();
  } else {
    TK_ASSIGN_OR_RETURN(segment, NewSegment(key));
    it = classes_.find(key);
  }
  SizeClass& size_class = *it->second;
  const uint32_t slot = segment->slots.Take();
  if (segment->slots.free_count() > 0) size_class.partial.insert(SizeClass::RankOf(*segment));
  ++size_class.used_slots;
  used_bytes_ += slot_bytes;
  used_bytes_by_tenant_[tenant] += slot_bytes;
  return SlotRef{.segment = segment->info.id, .slot = slot};
}

void HostArena::Free(SlotRef slot) {
  TK_CHECK(IsHeld(slot));
  Segment* const segment = table_->Get(slot.segment);
  const SegmentInfo& info = segment->info;
  SizeClass& size_class = *classes_.at({info.tenant, info.slot_bytes});
  // Absent when the segment was full.
  size_class.partial.erase(SizeClass::RankOf(*segment));
  segment->slots.Return(slot.slot);
  --size_class.used_slots;
  used_bytes_ -= info.slot_bytes;
  const auto tenant_bytes = used_bytes_by_tenant_.find(info.tenant);
  tenant_bytes->second -= info.slot_bytes;
  if (tenant_bytes->second == 0) used_bytes_by_tenant_.erase(tenant_bytes);

  if (segment->used_count() > 0) {
    size_class.partial.insert(SizeClass::RankOf(*segment));
  } else if (size_class.empty.empty() ||
             empty_bytes_ + info.memory.size() <= capacity_bytes_ / kKeptEmptyDivisor) {
    size_class.empty.push_back(segment);
    empty_segments_.insert(info.id);
    empty_bytes_ += info.memory.size();
  } else {
    Retire(segment);
  }
}

// Forgets a segment without used slots that is neither in `partial` nor in `empty` of its
// class any more, and the class with its last one.
void HostArena::Retire(Segment* segment) {
  const SegmentInfo& info = segment->info;
  if (observer_ != nullptr) observer_->OnSegmentDestroyed(info);
  const auto it = classes_.find({info.tenant, info.slot_bytes});
  SizeClass& size_class = *it->second;
  --size_class.segment_count;
  size_class.segment_bytes -= info.memory.size();
  size_class.slot_count -= segment->slots.slot_count();
  if (size_class.segment_count == 0) classes_.erase(it);
  table_->Set(info.id, nullptr);
  --segment_count_;
  retired_.push_back(Retired(std::move(segment->memory), &segment_bytes_, &retired_bytes_));
  delete segment;
}

// Unmaps empty segments until `bytes` are available or none is left.
void HostArena::MakeRoom(uint64_t bytes) {
  if (AvailableBytes() >= bytes) return;
  retired_.clear();
  while (AvailableBytes() < bytes && !empty_segments_.empty()) {
    Segment* const segment = table_->Get(*empty_segments_.begin());
    empty_segments_.erase(empty_segments_.begin());
    std::erase(classes_.at({segment->info.tenant, segment->info.slot_bytes})->empty, segment);
    empty_bytes_ -= segment->info.memory.size();
    Retire(segment);
    retired_.clear();
  }
}

absl::StatusOr<HostArena::Segment*> HostArena::NewSegment(const ClassKey& key) {
  const auto [tenant, slot_bytes] = key;
  const uint64_t wanted_bytes = SegmentBytesFor(slot_bytes);
  MakeRoom(wanted_bytes);
  const uint64_t bytes = std::min(wanted_bytes, RoundDown(AvailableBytes(), slot_bytes));
  if (bytes == 0) {
    return ResourceExhausted(
        "host arena: no room for a slot of {} bytes of tenant {}: {} of {} bytes are in segments, "
        "{} in use",
        slot_bytes, tenant, segment_bytes_.load(std::memory_order_relaxed), capacity_bytes_,
        used_bytes_);
  }
  if (segment_count_ >= kMaxArenaSegments || next_segment_id_ >= kMaxArenaSegmentIds) {
    return ResourceExhausted("host arena: {} segments exist and {} were made, at most {} and {}",
                             segment_count_, next_segment_id_ - 1, kMaxArenaSegments,
                             kMaxArenaSegmentIds - 1);
  }
  TK_ASSIGN_OR_RETURN(SharedMemory memory, CreateMemory(key, bytes));

  const uint32_t id = next_segment_id_++;
  const uint64_t memory_bytes = memory.bytes();
  const SegmentInfo info{.id = id,
                         .tenant = tenant,
                         .fd = memory.fd(),
                         .slot_bytes = slot_bytes,
                         .memory = memory.memory()};
  // Owned by the arena through the table until Retire or the destructor.
  auto* const segment =
      new Segment(std::move(memory), info, static_cast<uint32_t>(memory_bytes / slot_bytes));
  std::unique_ptr<SizeClass>& size_class = classes_[key];
  if (size_class == nullptr) size_class = std::make_unique<SizeClass>();
  ++size_class->segment_count;
  size_class->segment_bytes += memory_bytes;
  size_class->slot_count += segment->slots.slot_count();
  segment_bytes_.fetch_add(memory_bytes, std::memory_order_relaxed);
  ++segment_count_;
  table_->Set(id, segment);
  if (observer_ != nullptr) observer_->OnSegmentCreated(segment->info);
  return segment;
}

// Memory of `bytes`, a little more where huge pages round it up.
absl::StatusOr<SharedMemory> HostArena::CreateMemory(const ClassKey& key, uint64_t bytes) {
  const std::string name = fmt::format("turnkeep-tenant{}-slots{}", key.first, key.second);
  const uint64_t huge_bytes = RoundUp(bytes, kHugePageBytes);
  if (huge_pages_ && huge_bytes <= AvailableBytes()) {
    auto memory = SharedMemory::Create(name, huge_bytes, PageSize::kHuge);
    if (memory.ok()) return memory;
    // The pool is configured by hand and does not fill itself: do not ask again.
    huge_pages_ = false;
    page_notice_ = fmt::format("{} from here on: huge pages were asked for, but {}", NormalPages(),
                               MessageOf(memory.status()));
  }
  return SharedMemory::Create(name, bytes, PageSize::kNormal);
}

std::span<std::byte> HostArena::Memory(SlotRef slot) const {
  const Segment* const segment = table_->Get(slot.segment);
  TK_CHECK(segment != nullptr && slot.slot < segment->slots.slot_count());
  const uint64_t slot_bytes = segment->info.slot_bytes;
  return segment->info.memory.subspan(slot.slot * slot_bytes, slot_bytes);
}

bool HostArena::IsHeld(SlotRef slot) const {
  const Segment* const segment = table_->Get(slot.segment);
  return segment != nullptr && slot.slot < segment->slots.slot_count() &&
         !segment->slots.IsFree(slot.slot);
}

std::optional<SegmentInfo> HostArena::FindSegment(uint32_t id) const {
  const Segment* const segment = table_->Get(id);
  if (segment == nullptr) return std::nullopt;
  return segment->info;
}

std::vector<SegmentInfo> HostArena::SegmentsOf(uint32_t tenant) const {
  std::vector<SegmentInfo> segments;
  table_->ForEach(next_segment_id_, [&](const Segment* segment) {
    if (segment->info.tenant == tenant) segments.push_back(segment->info);
  });
  return segments;
}

std::vector<HostArena::Retired> HostArena::TakeRetired() { return std::exchange(retired_, {}); }

uint64_t HostArena::used_bytes(uint32_t tenant) const {
  const auto it = used_bytes_by_tenant_.find(tenant);
  return it == used_bytes_by_tenant_.end() ? 0 : it->second;
}

ArenaUsage HostArena::Usage() const {
  ArenaUsage usage{.capacity_bytes = capacity_bytes_,
                   .segment_bytes = segment_bytes_.load(std::memory_order_relaxed),
                   .retired_bytes = retired_bytes_.load(std::memory_order_relaxed),
                   .used_bytes = used_bytes_,
                   .segment_count = segment_count_};
  usage.classes.reserve(classes_.size());
  for (const auto& [key, size_class] : classes_) {
    usage.classes.push_back({.tenant = key.first,
                             .slot_bytes = key.second,
                             .segment_count = size_class->segment_count,
                             .segment_bytes = size_class->segment_bytes,
                             .used_slots = size_class->used_slots,
                             .free_slots = size_class->slot_count - size_class->used_slots});
  }
  return usage;
}

}  // namespace turnkeep
