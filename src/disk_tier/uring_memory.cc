#include "disk_tier/uring_memory.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "core/check.h"

namespace turnkeep {

void UringMemory::Init(io_uring* ring, bool enabled) {
  ring_ = ring;
  if (!enabled) {
    refusal_ = "turned off";
  } else if (int rc = io_uring_register_buffers_sparse(ring, kMaxPieces); rc < 0) {
    refusal_ = fmt::format("io_uring_register: {}", std::strerror(-rc));
  } else {
    usable_ = true;
  }
  Publish();
}

void UringMemory::Add(std::span<std::byte> memory) {
  if (memory.empty()) return;
  auto region = std::make_unique<Region>();
  region->memory = memory;
  auto pieces = static_cast<uint32_t>(DivideRoundUp(memory.size(), kPieceBytes));
  if (usable_ && TakeIndices(pieces, &region->first_index)) region->pinned.assign(pieces, false);
  regions_[memory.data()] = std::move(region);
  Publish();
}

void UringMemory::Remove(std::span<std::byte> memory) {
  auto it = regions_.find(memory.data());
  if (it == regions_.end()) return;
  std::unique_ptr<Region> region = std::move(it->second);
  regions_.erase(it);
  region->removed = true;
  if (region->users == 0) {
    Forget(*region);
  } else {
    leaving_.push_back(std::move(region));
  }
  Publish();
}

UringMemory::Region* UringMemory::Acquire(std::span<std::byte> buffer) {
  auto it = regions_.upper_bound(buffer.data());
  if (it == regions_.begin()) return nullptr;
  Region* region = std::prev(it)->second.get();
  const std::byte* end = region->memory.data() + region->memory.size();
  if (buffer.data() + buffer.size() > end) return nullptr;
  ++region->users;
  return region;
}

void UringMemory::Release(Region* region) {
  TK_CHECK(region->users > 0);
  if (--region->users > 0 || !region->removed) return;
  Forget(*region);
  std::erase_if(leaving_, [region](const auto& left) { return left.get() == region; });
}

int UringMemory::FixedIndex(Region* region, const std::byte* address, uint64_t* bytes_left) {
  if (region->pinned.empty()) return -1;
  auto offset = static_cast<uint64_t>(address - region->memory.data());
  size_t piece = offset / kPieceBytes;
  if (!region->pinned[piece] && !(usable_ && Pin(region, piece))) return -1;
  uint64_t piece_end = std::min<uint64_t>((piece + 1) * kPieceBytes, region->memory.size());
  *bytes_left = piece_end - offset;
  return static_cast<int>(region->first_index + piece);
}

// The first gap of `count` indices, lowest first.
bool UringMemory::TakeIndices(uint32_t count, uint32_t* first) {
  uint32_t next = 0;
  for (const auto& [start, length] : taken_) {
    if (start - next >= count) break;
    next = start + length;
  }
  if (count > kMaxPieces || next > kMaxPieces - count) {
    refusal_ = fmt::format("the table of {} pieces is full", kMaxPieces);
    return false;
  }
  taken_[next] = count;
  *first = next;
  return true;
}

bool UringMemory::Pin(Region* region, size_t piece) {
  std::byte* base = region->memory.data() + piece * kPieceBytes;
  iovec iov{base, std::min<uint64_t>(kPieceBytes, region->memory.size() - piece * kPieceBytes)};
  __u64 tag = 0;
  int rc = io_uring_register_buffers_update_tag(
      ring_, static_cast<unsigned>(region->first_index + piece), &iov, &tag, 1);
  if (rc == 1) {
    region->pinned[piece] = true;
  } else {
    usable_ = false;  // what is pinned stays in use
    refusal_ =
        fmt::format("pinning {} bytes: {}", iov.iov_len, rc < 0 ? std::strerror(-rc) : "refused");
  }
  Publish();
  return rc == 1;
}

void UringMemory::Forget(const Region& region) {
  for (size_t piece = 0; piece < region.pinned.size(); ++piece) {
    if (!region.pinned[piece]) continue;
    iovec none{nullptr, 0};
    __u64 tag = 0;
    int rc = io_uring_register_buffers_update_tag(
        ring_, static_cast<unsigned>(region.first_index + piece), &none, &tag, 1);
    TK_CHECK(rc == 1);  // no operation uses it
  }
  if (!region.pinned.empty()) taken_.erase(region.first_index);
}

void UringMemory::Publish() {
  size_t registered = 0;
  uint64_t pinned_bytes = 0;
  for (const auto& [start, region] : regions_) {
    if (!region->pinned.empty()) ++registered;
    for (bool pinned : region->pinned) pinned_bytes += pinned ? kPieceBytes : 0;
  }
  std::string text = fmt::format("{} of {} segments registered, {} MiB pinned", registered,
                                 regions_.size(), pinned_bytes / kMiB);
  if (!refusal_.empty()) text += fmt::format(" (plain buffers for the rest: {})", refusal_);
  absl::MutexLock lock(&mutex_);
  description_ = std::move(text);
}

std::string UringMemory::Describe() const {
  absl::MutexLock lock(&mutex_);
  return description_;
}

}  // namespace turnkeep
