// Size: TEST(ExtentAllocator,AgreesWithAModelOverRandomOperations) is the model and its operations
// side by side; apart, neither could be checked against the other by eye.
#include "disk_tier/extent_allocator.h"

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "disk_tier/extent_file_header.h"

namespace turnkeep {
namespace {

constexpr uint64_t kSmall = 2 * kBlockBytes;
constexpr uint64_t kLarge = 5 * kBlockBytes;

uint64_t FileOf(uint32_t slots, uint64_t slot_bytes) { return SlotOffset(slots, slot_bytes); }

TEST(ExtentAllocator, GivesSlotsInOrderSoThatTheyAreContiguous) {
  ExtentAllocator allocator;
  allocator.AddFile(1, kSmall, FileOf(200, kSmall));
  for (uint32_t i = 0; i < 200; ++i) EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{1, i}));
  EXPECT_EQ(allocator.Take(kSmall), std::nullopt);
}

TEST(ExtentAllocator, FillsTheFullestFileAndTheLowestSlotFirst) {
  ExtentAllocator allocator;
  allocator.AddFile(1, kSmall, FileOf(4, kSmall));
  for (int i = 0; i < 4; ++i) allocator.Take(kSmall);
  allocator.AddFile(2, kSmall, FileOf(4, kSmall));
  ASSERT_EQ(allocator.Take(kSmall), (ExtentRef{2, 0}));
  allocator.Free({1, 3});
  allocator.Free({1, 1});
  EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{1, 1}));
  EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{1, 3}));
  EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{2, 1}));
}

TEST(ExtentAllocator, AClassNeverGetsASlotOfAnother) {
  ExtentAllocator allocator;
  allocator.AddFile(1, kSmall, FileOf(4, kSmall));
  EXPECT_EQ(allocator.Take(kLarge), std::nullopt);
  EXPECT_EQ(allocator.FreeFileBeside(kLarge), 1u);
  EXPECT_EQ(allocator.FreeFileBeside(kSmall), 0u);
}

TEST(ExtentAllocator, APoisonedFileGivesNothingAndAQuarantinedSlotStaysOut) {
  ExtentAllocator allocator;
  allocator.AddFile(1, kSmall, FileOf(3, kSmall));
  ExtentRef bad = *allocator.Take(kSmall);
  allocator.Quarantine(bad);
  EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{1, 1}));
  allocator.Free({1, 1});
  EXPECT_FALSE(allocator.IsUsed(bad));
  EXPECT_EQ(allocator.Take(kSmall), (ExtentRef{1, 1}));
  allocator.Poison(1);
  EXPECT_EQ(allocator.Take(kSmall), std::nullopt);
  EXPECT_EQ(allocator.FreeFileBeside(kSmall), 0u) << "a used slot keeps the file";
  allocator.Free({1, 1});
  EXPECT_EQ(allocator.FreeFileBeside(kSmall), 1u) << "a poisoned file goes once it is empty";
}

TEST(ExtentAllocator, MarkRefusesWhatCannotBe) {
  ExtentAllocator allocator;
  allocator.AddFile(1, kSmall, FileOf(3, kSmall));
  EXPECT_TRUE(allocator.Mark({1, 2}, kSmall).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, 2}, kSmall))) << "used twice";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, 3}, kSmall))) << "past the end";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, UINT32_MAX}, kSmall))) << "far past it";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, 0}, kLarge))) << "other class";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({2, 0}, kSmall))) << "no such file";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, 0}, 0))) << "no size";
  EXPECT_TRUE(absl::IsInvalidArgument(allocator.Mark({1, 0}, 100))) << "not blocks";
}

TEST(ExtentAllocator, AFileOfUnknownClassTakesItFromTheFirstRecord) {
  ExtentAllocator allocator;
  allocator.AddFile(1, 0, FileOf(6, kLarge));
  EXPECT_EQ(allocator.Take(kLarge), std::nullopt);
  EXPECT_TRUE(allocator.Mark({1, 5}, kLarge).ok());
  EXPECT_EQ(allocator.Take(kLarge), (ExtentRef{1, 0}));
}

// Random operations against sets of slots. TURNKEEP_SEED replays a run.
TEST(ExtentAllocator, AgreesWithAModelOverRandomOperations) {
  const char* given = std::getenv("TURNKEEP_SEED");
  uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE(::testing::Message() << "TURNKEEP_SEED=" << seed);
  std::mt19937_64 random(seed);
  struct ModelFile {
    uint64_t slot_bytes;
    uint32_t slots;
    bool poisoned = false;
    std::set<uint32_t> used, bad;
    uint32_t free() const { return slots - static_cast<uint32_t>(used.size() + bad.size()); }
  };
  std::map<uint32_t, ModelFile> model;
  ExtentAllocator allocator;
  uint32_t next_file = 1;
  auto random_used = [&]() -> std::optional<ExtentRef> {
    std::vector<ExtentRef> all;
    for (auto& [number, file] : model) {
      for (uint32_t slot : file.used) all.push_back({number, slot});
    }
    if (all.empty()) return std::nullopt;
    return all[random() % all.size()];
  };
  for (int step = 0; step < 20'000; ++step) {
    uint64_t slot_bytes = random() % 2 != 0 ? kSmall : kLarge;
    switch (random() % 100) {
      default: {  // take
        std::optional<ExtentRef> got = allocator.Take(slot_bytes);
        uint32_t least = UINT32_MAX;
        for (auto& [number, file] : model) {
          if (file.slot_bytes == slot_bytes && !file.poisoned && file.free() > 0) {
            least = std::min(least, file.free());
          }
        }
        ASSERT_EQ(got.has_value(), least != UINT32_MAX);
        if (!got) break;
        ModelFile& file = model.at(got->file);
        ASSERT_EQ(file.slot_bytes, slot_bytes);
        ASSERT_EQ(file.free(), least) << "not the fullest file";
        for (uint32_t lower = 0; lower < got->slot; ++lower) {
          ASSERT_TRUE(file.used.contains(lower) || file.bad.contains(lower)) << "not the lowest";
        }
        ASSERT_FALSE(file.bad.contains(got->slot));
        ASSERT_TRUE(file.used.insert(got->slot).second);
        break;
      }
      case 0 ... 44:
        if (auto ref = random_used()) {
          allocator.Free(*ref);
          model.at(ref->file).used.erase(ref->slot);
        }
        break;
      case 45:
        if (auto ref = random_used()) {
          allocator.Quarantine(*ref);
          model.at(ref->file).used.erase(ref->slot);
          model.at(ref->file).bad.insert(ref->slot);
        }
        break;
      case 46 ... 48:
        if (model.size() < 8) {
          auto slots = static_cast<uint32_t>(random() % 150 + 1);
          allocator.AddFile(next_file, slot_bytes, FileOf(slots, slot_bytes));
          model[next_file++] = {slot_bytes, slots};
        }
        break;
      case 49:
        if (!model.empty() && random() % 10 == 0) {
          auto it = std::next(model.begin(), static_cast<long>(random() % model.size()));
          allocator.Poison(it->first);
          it->second.poisoned = true;
        }
        break;
      case 50:
        if (uint32_t file = allocator.FreeFileBeside(slot_bytes)) {
          ASSERT_TRUE(model.at(file).used.empty());
          allocator.RemoveFile(file);
          model.erase(file);
        }
        break;
    }
    uint64_t bytes = 0;
    for (auto& [number, file] : model) {
      const ExtentAllocator::File* known = allocator.Find(number);
      ASSERT_NE(known, nullptr);
      ASSERT_EQ(known->used, file.used.size());
      ASSERT_EQ(known->quarantined, file.bad.size());
      bytes += known->file_bytes;
    }
    ASSERT_EQ(allocator.file_bytes(), bytes);
  }
}

}  // namespace
}  // namespace turnkeep
