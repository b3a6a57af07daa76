#include "disk_tier/extent_allocator.h"

#include <algorithm>
#include <bit>

#include "core/check.h"
#include "core/status.h"
#include "disk_tier/extent_file_header.h"

namespace turnkeep {
namespace {

constexpr uint32_t kWordBits = 64;

uint64_t BitOf(uint32_t slot) { return uint64_t{1} << (slot % kWordBits); }

bool Test(const std::vector<uint64_t>& bits, uint32_t slot) {
  return !bits.empty() && (bits[slot / kWordBits] & BitOf(slot)) != 0;
}

}  // namespace

void ExtentAllocator::AddFile(uint32_t number, uint64_t slot_bytes, uint64_t file_bytes) {
  auto [it, added] = files_.try_emplace(number);
  TK_CHECK(added && number != 0);
  it->second.file_bytes = file_bytes;
  file_bytes_ += file_bytes;
  if (slot_bytes != 0) Adopt(number, it->second, slot_bytes);
}

void ExtentAllocator::Adopt(uint32_t number, File& file, uint64_t slot_bytes) {
  file.slot_bytes = slot_bytes;
  file.slots = static_cast<uint32_t>(
      std::min<uint64_t>(SlotsIn(file.file_bytes, slot_bytes), kMaxSlotsPerFile));
  file.taken.assign(DivideRoundUp(file.slots, kWordBits), 0);
  // Bits past the last slot are never free.
  if (file.slots % kWordBits != 0) file.taken.back() = ~(BitOf(file.slots) - 1);
  Enter(number, file);
}

void ExtentAllocator::RemoveFile(uint32_t number) {
  auto it = files_.find(number);
  TK_CHECK(it != files_.end() && it->second.used == 0);
  Leave(number, it->second);
  file_bytes_ -= it->second.file_bytes;
  files_.erase(it);
}

void ExtentAllocator::Leave(uint32_t number, const File& file) {
  auto it = open_.find(file.slot_bytes);
  if (it == open_.end()) return;
  it->second.erase({file.free(), number});
  if (it->second.empty()) open_.erase(it);
}

void ExtentAllocator::Enter(uint32_t number, const File& file) {
  if (file.free() > 0 && !file.poisoned) open_[file.slot_bytes].insert({file.free(), number});
}

std::optional<ExtentRef> ExtentAllocator::Take(uint64_t slot_bytes) {
  auto it = open_.find(slot_bytes);
  if (it == open_.end()) return std::nullopt;
  uint32_t number = it->second.begin()->second;
  File& file = files_.at(number);
  Leave(number, file);
  uint32_t word = file.first_free_word;
  while (file.taken[word] == ~uint64_t{0}) ++word;
  uint32_t slot = word * kWordBits + static_cast<uint32_t>(std::countr_one(file.taken[word]));
  TK_CHECK(slot < file.slots);
  file.first_free_word = word;
  file.taken[word] |= BitOf(slot);
  ++file.used;
  Enter(number, file);
  return ExtentRef{number, slot};
}

bool ExtentAllocator::IsUsed(ExtentRef ref) const {
  const File* file = Find(ref.file);
  return file != nullptr && ref.slot < file->slots && Test(file->taken, ref.slot) &&
         !Test(file->bad, ref.slot);
}

void ExtentAllocator::Free(ExtentRef ref) {
  TK_CHECK(IsUsed(ref));
  File& file = files_.at(ref.file);
  Leave(ref.file, file);
  uint32_t word = ref.slot / kWordBits;
  file.taken[word] &= ~BitOf(ref.slot);
  file.first_free_word = std::min(file.first_free_word, word);
  --file.used;
  Enter(ref.file, file);
}

void ExtentAllocator::Quarantine(ExtentRef ref) {
  TK_CHECK(IsUsed(ref));
  File& file = files_.at(ref.file);
  file.bad.resize(file.taken.size());
  file.bad[ref.slot / kWordBits] |= BitOf(ref.slot);
  --file.used;
  ++file.quarantined;  // free() stays as it is
}

absl::Status ExtentAllocator::Mark(ExtentRef ref, uint64_t slot_bytes) {
  auto it = files_.find(ref.file);
  if (it == files_.end()) return InvalidArgument("slot {}: no such file", ToString(ref));
  File& file = it->second;
  if (slot_bytes == 0 || slot_bytes % kBlockBytes != 0) {
    return InvalidArgument("slot {}: impossible size of {} bytes", ToString(ref), slot_bytes);
  }
  if (file.slot_bytes == 0) Adopt(ref.file, file, slot_bytes);
  if (file.slot_bytes != slot_bytes) {
    return InvalidArgument("slot {}: the file has slots of {} bytes, not {}", ToString(ref),
                           file.slot_bytes, slot_bytes);
  }
  if (ref.slot >= file.slots) {
    return InvalidArgument("slot {}: the file has {} slots", ToString(ref), file.slots);
  }
  if (Test(file.taken, ref.slot)) return InvalidArgument("slot {}: used already", ToString(ref));
  Leave(ref.file, file);
  file.taken[ref.slot / kWordBits] |= BitOf(ref.slot);
  ++file.used;
  Enter(ref.file, file);
  return absl::OkStatus();
}

void ExtentAllocator::Poison(uint32_t number) {
  auto it = files_.find(number);
  if (it == files_.end()) return;
  Leave(number, it->second);
  it->second.poisoned = true;
}

const ExtentAllocator::File* ExtentAllocator::Find(uint32_t file) const {
  auto it = files_.find(file);
  return it == files_.end() ? nullptr : &it->second;
}

uint32_t ExtentAllocator::FreeFileBeside(uint64_t slot_bytes) const {
  for (const auto& [number, file] : files_) {
    if (file.used != 0) continue;
    if (file.slot_bytes != slot_bytes || file.poisoned || file.free() == 0) return number;
  }
  return 0;
}

}  // namespace turnkeep
