#include "disk_tier/testing/memory_block_device.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"
#include "disk_tier/device_counters.h"

namespace turnkeep {

void MemoryDisk::LoseUnsynced(uint64_t seed) {
  std::mt19937_64 random(seed);
  absl::MutexLock lock(&mutex_);
  for (auto& [number, file] : files_) {
    for (const auto& [block, old] : file.unsynced) {
      if ((random() & 1) != 0) {
        std::memcpy(file.bytes.data() + block * kBlockBytes, old.data(), kBlockBytes);
      }
    }
    file.unsynced.clear();
  }
}

void MemoryDisk::FlipBit(uint32_t file, uint64_t offset, int bit) {
  absl::MutexLock lock(&mutex_);
  files_.at(file).bytes.at(offset) ^= static_cast<std::byte>(1 << bit);
}

std::vector<std::byte> MemoryDisk::Contents(uint32_t file) const {
  absl::MutexLock lock(&mutex_);
  return files_.at(file).bytes;
}

absl::Status MemoryDisk::Create(uint32_t file, uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (file == 0 || bytes == 0 || bytes % kBlockBytes != 0) {
    return InvalidArgument("create file {} of {} bytes: number or size", file, bytes);
  }
  if (files_.contains(file)) return AlreadyExists("create file {}: it exists", file);
  uint64_t used = 0;
  for (const auto& [number, existing] : files_) used += existing.bytes.size();
  if (used > capacity_bytes_ || bytes > capacity_bytes_ - used) {
    return ResourceExhausted("create file {}: the disk is full", file);
  }
  files_[file].bytes.resize(bytes);
  return absl::OkStatus();
}

absl::Status MemoryDisk::Transfer(const IoRequest& request) {
  absl::MutexLock lock(&mutex_);
  auto it = files_.find(request.file);
  if (it == files_.end()) return Unavailable("file {} is gone", request.file);
  File& file = it->second;
  if (request.op == IoOp::kSync) {
    file.unsynced.clear();
    return absl::OkStatus();
  }
  std::byte* at = file.bytes.data() + request.offset;
  if (request.op == IoOp::kRead) {
    std::memcpy(request.buffer.data(), at, request.buffer.size());
    return absl::OkStatus();
  }
  for (uint64_t i = 0; i < request.buffer.size(); i += kBlockBytes) {
    file.unsynced.try_emplace((request.offset + i) / kBlockBytes, at + i, at + i + kBlockBytes);
  }
  std::memcpy(at, request.buffer.data(), request.buffer.size());
  return absl::OkStatus();
}

class MemoryBlockDevice : public BlockDevice {
 public:
  MemoryBlockDevice(std::shared_ptr<MemoryDisk> disk, uint64_t seed)
      : disk_(std::move(disk)), random_(seed), thread_([this] { Run(); }) {}

  ~MemoryBlockDevice() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  absl::Status CreateFile(uint32_t file, uint64_t bytes) override {
    return disk_->Create(file, bytes);
  }
  absl::StatusOr<uint64_t> OpenFile(uint32_t file) override { return BytesOf(file); }
  absl::Status DeleteFile(uint32_t file) override {
    absl::MutexLock lock(&disk_->mutex_);
    if (disk_->files_.erase(file) == 0) return NotFound("delete file {}: there is none", file);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<DeviceFile>> ListFiles() override {
    absl::MutexLock lock(&disk_->mutex_);
    std::vector<DeviceFile> files;
    for (const auto& [number, file] : disk_->files_) files.push_back({number, file.bytes.size()});
    return files;
  }

  absl::Status Submit(std::span<IoRequest> requests) override {
    for (const IoRequest& request : requests) {
      absl::StatusOr<uint64_t> bytes = BytesOf(request.file);
      if (!bytes.ok()) return InvalidArgument("file {} is not open", request.file);
      TK_RETURN_IF_ERROR(ValidateIoRequest(request, *bytes));
    }
    absl::MutexLock lock(&mutex_);
    if (queue_.size() + requests.size() > kMaxQueuedIo) {
      return ResourceExhausted("{} operations are unfinished, at most {}", queue_.size(),
                               kMaxQueuedIo);
    }
    for (IoRequest& request : requests) queue_.push_back(std::move(request));
    return absl::OkStatus();
  }

  void RegisterMemory(std::span<std::byte>) override {}
  void UnregisterMemory(std::span<std::byte>) override {}
  std::string Describe() const override { return "memory"; }
  BlockDeviceStats Stats() const override {
    absl::MutexLock lock(&mutex_);
    return counters_.Read(0, static_cast<uint32_t>(queue_.size()));
  }

 private:
  absl::StatusOr<uint64_t> BytesOf(uint32_t file) {
    absl::MutexLock lock(&disk_->mutex_);
    auto it = disk_->files_.find(file);
    if (it == disk_->files_.end()) return NotFound("open file {}: there is none", file);
    return it->second.bytes.size();
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !queue_.empty() || stopping_;
  }

  void Run() {
    while (true) {
      IoRequest request;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &MemoryBlockDevice::HasWork));
        if (queue_.empty()) return;
        std::swap(queue_[random_() % queue_.size()], queue_.back());
        request = std::move(queue_.back());
        queue_.pop_back();
      }
      absl::Status status = disk_->Transfer(request);
      uint64_t bytes = request.op == IoOp::kSync || !status.ok() ? 0 : request.buffer.size();
      counters_.Count(request.op, bytes, status.ok());
      request.done(status, bytes);
    }
  }

  const std::shared_ptr<MemoryDisk> disk_;
  std::mt19937_64 random_;  // the thread's own
  DeviceCounters counters_;
  mutable absl::Mutex mutex_;
  std::vector<IoRequest> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

std::unique_ptr<BlockDevice> OpenMemoryBlockDevice(std::shared_ptr<MemoryDisk> disk,
                                                   uint64_t seed) {
  return std::make_unique<MemoryBlockDevice>(std::move(disk), seed);
}

}  // namespace turnkeep
