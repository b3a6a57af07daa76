#include "host_tier/arena.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/status.h"
#include "host_tier/slot_bitmap.h"

namespace turnkeep {
namespace {

using ::testing::HasSubstr;

// Keeps the set of live segments, and checks what is promised about each call.
class RecordingObserver : public SegmentObserver {
 public:
  void OnSegmentCreated(const SegmentInfo& segment) override {
    EXPECT_GT(segment.id, last_id) << "ids are never reused";
    last_id = segment.id;
    ++created_count;
    EXPECT_TRUE(live.emplace(segment.id, segment).second);
    for (const auto& [id, other] : live) {
      if (id == segment.id) continue;
      EXPECT_TRUE(segment.memory.data() + segment.memory.size() <= other.memory.data() ||
                  other.memory.data() + other.memory.size() <= segment.memory.data());
    }
  }
  void OnSegmentDestroyed(const SegmentInfo& segment) override {
    EXPECT_EQ(live.erase(segment.id), 1u);
    segment.memory.back() = std::byte{0};  // still mapped
    ++destroyed_count;
  }

  std::map<uint32_t, SegmentInfo> live;
  uint32_t last_id = 0;
  uint32_t created_count = 0;
  uint32_t destroyed_count = 0;
};

std::unique_ptr<HostArena> OpenArena(const HostArena::Options& options) {
  auto arena = HostArena::Open(options);
  EXPECT_TRUE(arena.ok()) << MessageOf(arena.status());
  return std::move(*arena);
}

TEST(HostArena, RefusesImpossibleOptions) {
  EXPECT_THAT(MessageOf(HostArena::Open({.capacity_bytes = 100}).status()),
              HasSubstr("capacity_bytes 100"));
  EXPECT_THAT(MessageOf(HostArena::Open({.capacity_bytes = kMiB, .segment_bytes = 0}).status()),
              HasSubstr("segment_bytes 0"));
  EXPECT_EQ(HostArena::Open({.capacity_bytes = kMiB, .segment_bytes = kMaxSegmentBytes + 1})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(HostArena, ConsecutiveAllocationsAreContiguousAndSegmentsAreFilledFirst) {
  RecordingObserver observer;
  auto arena =
      OpenArena({.capacity_bytes = 64 * kMiB, .segment_bytes = kMiB, .observer = &observer});
  EXPECT_TRUE(observer.live.empty()) << "segments are made when needed";
  std::vector<SlotRef> slots;
  for (int i = 0; i < 20; ++i) slots.push_back(*arena->Allocate(1, 64 * kKiB));
  ASSERT_EQ(observer.live.size(), 2u) << "16 slots a segment";
  for (int i = 1; i < 16; ++i) {
    EXPECT_EQ(arena->Memory(slots[i]).data(), arena->Memory(slots[i - 1]).data() + 64 * kKiB);
  }
  // The first segment is fuller: its hole is taken before the second goes on, lowest first.
  arena->Free(slots[9]);
  arena->Free(slots[3]);
  EXPECT_EQ(*arena->Allocate(1, 64 * kKiB), slots[3]);
  EXPECT_EQ(*arena->Allocate(1, 64 * kKiB), slots[9]);
  EXPECT_EQ(arena->Allocate(1, 64 * kKiB)->segment, slots[19].segment);
}

TEST(HostArena, TenantsAndClassesNeverShareASegment) {
  RecordingObserver observer;
  auto arena =
      OpenArena({.capacity_bytes = 64 * kMiB, .segment_bytes = kMiB, .observer = &observer});
  const SlotRef a = *arena->Allocate(1, 8 * kKiB);
  const SlotRef b = *arena->Allocate(2, 8 * kKiB);
  const SlotRef c = *arena->Allocate(1, 12 * kKiB);
  EXPECT_NE(a.segment, b.segment);
  EXPECT_NE(a.segment, c.segment);
  EXPECT_EQ(arena->FindSegment(b.segment)->tenant, 2u);
  EXPECT_EQ(arena->FindSegment(c.segment)->slot_bytes, 12 * kKiB);
  EXPECT_EQ(arena->SegmentsOf(1).size(), 2u);
  EXPECT_EQ(arena->SegmentsOf(2).size(), 1u);
  EXPECT_EQ(arena->SegmentsOf(3).size(), 0u);
  EXPECT_EQ(arena->used_bytes(1), 20 * kKiB);
  EXPECT_EQ(arena->used_bytes(2), 8 * kKiB);
  EXPECT_EQ(arena->used_bytes(), 28 * kKiB);
  const ArenaUsage usage = arena->Usage();
  ASSERT_EQ(usage.classes.size(), 3u);
  EXPECT_EQ(usage.classes[0].used_slots, 1u);
  EXPECT_EQ(usage.classes[0].free_slots, 127u);
}

TEST(HostArena, AnEighthOfTheCapIsKeptEmptyAndGivenUpAtTheCap) {
  RecordingObserver observer;
  auto arena =
      OpenArena({.capacity_bytes = 4 * kMiB, .segment_bytes = 64 * kKiB, .observer = &observer});
  std::vector<SlotRef> slots;
  for (int i = 0; i < 64 * 16; ++i) slots.push_back(*arena->Allocate(1, 4 * kKiB));
  EXPECT_EQ(arena->Usage().segment_bytes, 4 * kMiB);
  const absl::Status full = arena->Allocate(1, 4 * kKiB).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(full), HasSubstr("4194304 of 4194304 bytes are in segments"));
  EXPECT_EQ(arena->Allocate(2, 8 * kKiB).status().code(), absl::StatusCode::kResourceExhausted);

  for (const SlotRef slot : slots) arena->Free(slot);
  EXPECT_EQ(arena->used_bytes(), 0u);
  EXPECT_EQ(observer.live.size(), 8u);
  EXPECT_EQ(arena->Usage().retired_bytes, 56 * 64 * kKiB);
  EXPECT_EQ(arena->Usage().segment_bytes, 4 * kMiB) << "still mapped";
  arena->TakeRetired();
  EXPECT_EQ(arena->Usage().retired_bytes, 0u);
  EXPECT_EQ(arena->Usage().segment_bytes, 8 * 64 * kKiB);
  // What comes and goes within the eighth makes no new segment.
  const uint32_t made = observer.created_count;
  for (int round = 0; round < 3; ++round) {
    std::vector<SlotRef> again;
    for (int i = 0; i < 8 * 16; ++i) again.push_back(*arena->Allocate(1, 4 * kKiB));
    for (const SlotRef slot : again) arena->Free(slot);
  }
  EXPECT_EQ(observer.created_count, made);

  // Another tenant fills the cap, the kept ones included.
  for (int i = 0; i < 64 * 16; ++i) ASSERT_TRUE(arena->Allocate(2, 4 * kKiB).ok()) << i;
  EXPECT_EQ(arena->SegmentsOf(1).size(), 0u);
}

TEST(HostArena, RetiredSegmentsAreUnmappedWhenTheirBytesAreNeeded) {
  auto arena = OpenArena({.capacity_bytes = 4 * kMiB, .segment_bytes = 64 * kKiB});
  std::vector<SlotRef> slots;
  for (int i = 0; i < 64 * 16; ++i) slots.push_back(*arena->Allocate(1, 4 * kKiB));
  for (const SlotRef slot : slots) arena->Free(slot);
  EXPECT_GT(arena->Usage().retired_bytes, 0u);
  for (int i = 0; i < 64 * 8; ++i) ASSERT_TRUE(arena->Allocate(1, 8 * kKiB).ok()) << i;
  EXPECT_LE(arena->Usage().segment_bytes, 4 * kMiB);
}

TEST(HostArena, TheRestOfTheCapBecomesASmallerSegment) {
  auto arena = OpenArena({.capacity_bytes = 4 * kMiB + 12 * kKiB, .segment_bytes = 64 * kKiB});
  int count = 0;
  while (arena->Allocate(1, 4 * kKiB).ok()) ++count;
  EXPECT_EQ(count, 64 * 16 + 3);
  // A slot that is large beside the cap still fits.
  auto small = OpenArena({.capacity_bytes = 10 * kMiB, .segment_bytes = kMiB});
  EXPECT_TRUE(small->Allocate(1, 6 * kMiB).ok());
  EXPECT_FALSE(small->Allocate(1, 6 * kMiB).ok());
  EXPECT_TRUE(small->Allocate(1, 2 * kMiB).ok());
  EXPECT_LE(small->Usage().segment_bytes, 10 * kMiB);
}

TEST(HostArena, SegmentSizeIsSealed) {
  auto arena = OpenArena({.capacity_bytes = kMiB});
  const SlotRef slot = *arena->Allocate(1, 4 * kKiB);
  const SegmentInfo info = *arena->FindSegment(slot.segment);
  EXPECT_NE(ftruncate(info.fd, 0), 0);
  EXPECT_NE(ftruncate(info.fd, 1 << 30), 0);
  EXPECT_NE(fcntl(info.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST(HostArena, AClientThatMapsTheDescriptorSeesTheSameBytes) {
  auto arena = OpenArena({.capacity_bytes = kMiB});
  const SlotRef slot = *arena->Allocate(1, 4 * kKiB);
  const SegmentInfo info = *arena->FindSegment(slot.segment);
  auto mapped = SharedMemory::Map(dup(info.fd), info.memory.size());
  ASSERT_TRUE(mapped.ok()) << MessageOf(mapped.status());
  mapped->memory()[slot.slot * info.slot_bytes + 5] = std::byte{0x42};
  EXPECT_EQ(arena->Memory(slot)[5], std::byte{0x42});
  EXPECT_EQ(SharedMemory::Map(dup(info.fd), info.memory.size() + 4096).status().code(),
            absl::StatusCode::kInvalidArgument);
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, 4096), 0);
  EXPECT_THAT(MessageOf(SharedMemory::Map(unsealed, 4096).status()), HasSubstr("not sealed"));
}

// The flags of the mapping that holds `address`, as the kernel tells them.
std::string MappingFlags(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

TEST(HostArena, AsksForTransparentHugePagesAndStaysOutOfCoreDumps) {
  auto arena = OpenArena({.capacity_bytes = 64 * kMiB});
  EXPECT_THAT(arena->page_notice(), HasSubstr("transparent huge pages of shared memory: "));
  const SlotRef slot = *arena->Allocate(1, 4 * kKiB);
  const SegmentInfo info = *arena->FindSegment(slot.segment);
  auto mapped = SharedMemory::Map(dup(info.fd), info.memory.size());
  ASSERT_TRUE(mapped.ok()) << MessageOf(mapped.status());
  for (const void* address : {info.memory.data(), mapped->memory().data()}) {
    EXPECT_THAT(MappingFlags(address), HasSubstr(" dd "));
    if (TransparentHugePagesOfSharedMemory() != "unknown") {
      EXPECT_THAT(MappingFlags(address), HasSubstr(" hg "));
    }
  }
}

TEST(HostArena, FallsBackFromHugePagesAndSaysSo) {
  // Whether the machine has a pool of huge pages or not, allocation works and the notice tells.
  auto arena = OpenArena({.capacity_bytes = 64 * kMiB, .huge_pages = true});
  EXPECT_EQ(arena->page_notice(), "huge pages");
  const auto slot = arena->Allocate(1, 4 * kKiB);
  ASSERT_TRUE(slot.ok()) << MessageOf(slot.status());
  arena->Memory(*slot)[0] = std::byte{1};
  if (arena->page_notice() != "huge pages") {
    EXPECT_THAT(arena->page_notice(), HasSubstr("huge pages were asked for, but"));
  }
}

TEST(HostArenaDeathTest, FreeingTwiceIsCaught) {
  auto arena = OpenArena({.capacity_bytes = kMiB});
  const SlotRef first = *arena->Allocate(1, 4 * kKiB);
  ASSERT_TRUE(arena->Allocate(1, 4 * kKiB).ok());
  EXPECT_TRUE(arena->IsHeld(first));
  arena->Free(first);
  EXPECT_FALSE(arena->IsHeld(first));
  EXPECT_FALSE(arena->IsHeld({}));
  EXPECT_FALSE(arena->IsHeld({.segment = 99, .slot = 0}));
  EXPECT_FALSE(arena->IsHeld({.segment = first.segment, .slot = 1u << 30}));
  EXPECT_DEATH(arena->Free(first), "check failed");
}

TEST(SlotBitmap, GivesTheLowestFreeSlotAtEverySize) {
  for (const uint32_t count : {1u, 2u, 63u, 64u, 65u, 4095u, 4096u, 4097u, 262145u}) {
    SlotBitmap bitmap(count);
    for (uint32_t i = 0; i < count; ++i) ASSERT_EQ(bitmap.Take(), i);
    EXPECT_EQ(bitmap.free_count(), 0u);
    bitmap.Return(count - 1);
    if (count > 2) {
      bitmap.Return(count / 2);
      EXPECT_EQ(bitmap.Take(), count / 2);
    }
    EXPECT_EQ(bitmap.Take(), count - 1);
  }
}

// ---- The storm -------------------------------------------------------------------

struct LiveSlot {
  SlotRef ref;
  uint32_t tenant = 0;
  uint64_t bytes = 0;
  uint64_t stamp = 0;
};

// Random saves and drops against a model that knows every live slot.
class Storm {
 public:
  static constexpr uint64_t kCapacityBytes = 64 * kMiB;
  static constexpr uint64_t kWorkingSetBytes = 40 * kMiB;

  explicit Storm(unsigned seed) : random_(seed) {
    arena_ = OpenArena(
        {.capacity_bytes = kCapacityBytes, .segment_bytes = 256 * kKiB, .observer = &observer_});
  }

  void Step() {
    const bool grow = model_bytes_ < kWorkingSetBytes;
    if (live_.empty() || (grow ? random_() % 4 != 0 : random_() % 4 == 0)) {
      Save();
    } else {
      Drop(random_() % live_.size());
    }
  }

  void Save() {
    const uint32_t tenant = 1 + random_() % 3;
    const uint64_t bytes = kClasses[random_() % kClasses.size()];
    const auto slot = arena_->Allocate(tenant, bytes);
    if (!slot.ok()) {
      EXPECT_EQ(slot.status().code(), absl::StatusCode::kResourceExhausted);
      ++refused;
      return;
    }
    ExpectDisjoint(arena_->Memory(*slot));
    // A stamp at both ends of the slot: memory shared by two mappings would show here.
    const LiveSlot live{*slot, tenant, bytes, ++next_stamp_};
    WriteStamps(live);
    live_.push_back(live);
    model_bytes_ += bytes;
    model_tenant_bytes_[tenant] += bytes;
  }

  void Drop(size_t index) {
    const LiveSlot live = live_[index];
    ExpectStamps(live);
    addresses_.erase(arena_->Memory(live.ref).data());
    arena_->Free(live.ref);
    live_[index] = live_.back();
    live_.pop_back();
    model_bytes_ -= live.bytes;
    model_tenant_bytes_[live.tenant] -= live.bytes;
  }

  void DropAll() {
    while (!live_.empty()) Drop(live_.size() - 1);
  }

  void ExpectCountersMatchTheModel() const {
    ASSERT_EQ(arena_->used_bytes(), model_bytes_);
    for (const auto& [tenant, bytes] : model_tenant_bytes_) {
      ASSERT_EQ(arena_->used_bytes(tenant), bytes);
    }
    ASSERT_LE(arena_->Usage().segment_bytes, kCapacityBytes);
  }

  void ExpectUsageMatchesTheModel() const {
    std::map<std::pair<uint32_t, uint64_t>, uint64_t> slots_by_class;
    for (const LiveSlot& live : live_) ++slots_by_class[{live.tenant, live.bytes}];
    uint64_t live_segment_bytes = 0;
    uint32_t segment_count = 0;
    const ArenaUsage usage = arena_->Usage();
    for (const ArenaClassUsage& entry : usage.classes) {
      const std::pair<uint32_t, uint64_t> key(entry.tenant, entry.slot_bytes);
      EXPECT_EQ(entry.used_slots, slots_by_class[key]);
      EXPECT_EQ((entry.used_slots + entry.free_slots) * entry.slot_bytes, entry.segment_bytes);
      slots_by_class.erase(key);
      live_segment_bytes += entry.segment_bytes;
      segment_count += entry.segment_count;
    }
    for (const auto& [key, count] : slots_by_class) EXPECT_EQ(count, 0u);
    EXPECT_EQ(usage.segment_bytes, live_segment_bytes + usage.retired_bytes);
    EXPECT_EQ(usage.segment_count, segment_count);
    uint64_t observed_bytes = 0;
    for (const auto& [id, info] : observer_.live) observed_bytes += info.memory.size();
    EXPECT_EQ(observed_bytes, live_segment_bytes);
  }

  // Segments in use, without the retired ones that nobody needed to unmap yet.
  uint64_t SegmentBytes() const {
    const ArenaUsage usage = arena_->Usage();
    return usage.segment_bytes - usage.retired_bytes;
  }
  const RecordingObserver& observer() const { return observer_; }
  uint64_t refused = 0;

 private:
  // The slot sizes of two layouts.
  inline static const std::vector<uint64_t> kClasses = {4 * kKiB,  8 * kKiB,  12 * kKiB, 16 * kKiB,
                                                        20 * kKiB, 40 * kKiB, 60 * kKiB, 80 * kKiB};

  void ExpectDisjoint(std::span<const std::byte> memory) {
    const std::byte* const end = memory.data() + memory.size();
    const auto next = addresses_.lower_bound(memory.data());
    if (next != addresses_.end()) {
      ASSERT_LE(end, next->first);
    }
    if (next != addresses_.begin()) {
      ASSERT_LE(std::prev(next)->second, memory.data());
    }
    addresses_[memory.data()] = end;
  }
  void WriteStamps(const LiveSlot& live) {
    const std::span<std::byte> memory = arena_->Memory(live.ref);
    ASSERT_EQ(memory.size(), live.bytes);
    std::memcpy(memory.data(), &live.stamp, sizeof(live.stamp));
    std::memcpy(memory.data() + memory.size() - sizeof(live.stamp), &live.stamp,
                sizeof(live.stamp));
  }
  void ExpectStamps(const LiveSlot& live) const {
    const std::span<const std::byte> memory = arena_->Memory(live.ref);
    uint64_t front = 0;
    uint64_t back = 0;
    std::memcpy(&front, memory.data(), sizeof(front));
    std::memcpy(&back, memory.data() + memory.size() - sizeof(back), sizeof(back));
    ASSERT_EQ(front, live.stamp);
    ASSERT_EQ(back, live.stamp);
  }

  std::mt19937 random_;
  RecordingObserver observer_;
  std::unique_ptr<HostArena> arena_;
  std::vector<LiveSlot> live_;
  std::map<const std::byte*, const std::byte*> addresses_;  // begin and end of live slots
  uint64_t next_stamp_ = 0;
  uint64_t model_bytes_ = 0;
  std::map<uint32_t, uint64_t> model_tenant_bytes_;
};

TEST(HostArena, AMillionRandomSavesAndDropsLeaveNoFragmentation) {
  constexpr unsigned kSeed = 20240901;
  constexpr int kSteps = 1'000'000;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  Storm storm(kSeed);
  uint64_t settled_bytes = 0;  // the most segments in the second tenth
  uint64_t last_bytes = 0;     // in the last tenth
  for (int step = 0; step < kSteps; ++step) {
    storm.Step();
    if (step % 64 == 0) storm.ExpectCountersMatchTheModel();
    if (step % 10'000 == 0) storm.ExpectUsageMatchesTheModel();
    if (::testing::Test::HasFailure()) FAIL() << "at step " << step;
    if (step / (kSteps / 10) == 1) settled_bytes = std::max(settled_bytes, storm.SegmentBytes());
    if (step / (kSteps / 10) == 9) last_bytes = std::max(last_bytes, storm.SegmentBytes());
  }
  EXPECT_EQ(storm.refused, 0u) << "the working set fits";
  EXPECT_LE(last_bytes, settled_bytes + settled_bytes / 20);
  // One kept empty and one partly used segment a class and tenant is the price of classes.
  EXPECT_LE(last_bytes, Storm::kWorkingSetBytes * 11 / 10 + 2 * 24 * 320 * kKiB);
  EXPECT_GT(storm.observer().destroyed_count, 0u);
  storm.DropAll();
  storm.ExpectCountersMatchTheModel();
  storm.ExpectUsageMatchesTheModel();
  uint64_t kept_bytes = 0;
  for (const auto& [id, segment] : storm.observer().live) kept_bytes += segment.memory.size();
  EXPECT_LE(kept_bytes, Storm::kCapacityBytes / 8 + 24 * 320 * kKiB)
      << "an eighth of the cap, and one a class and tenant";
}

// The owner makes and destroys segments while another thread resolves a slot that it holds.
TEST(HostArena, MemoryOfAHeldSlotIsResolvedWhileOthersComeAndGo) {
  auto arena = OpenArena({.capacity_bytes = 64 * kMiB, .segment_bytes = kMiB});
  const SlotRef held = *arena->Allocate(1, 64 * kKiB);
  std::byte* const expected = arena->Memory(held).data();
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop.load()) {
      if (arena->Memory(held).data() != expected) std::abort();
    }
  });
  for (int round = 0; round < 300; ++round) {
    std::vector<SlotRef> slots;
    for (int i = 0; i < 40; ++i) slots.push_back(*arena->Allocate(2, 64 * kKiB));
    for (const SlotRef slot : slots) arena->Free(slot);
    arena->TakeRetired();
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace turnkeep
