// MemoryBlockDevice: a BlockDevice whose files are memory, for tests.
//
// The bytes live in a MemoryDisk, so that a device can be closed and opened again, and so
// that a power cut can be played: LoseUnsynced drops what no sync has covered.
// Thread-safe; completions run on a thread of the device, in random order by `seed`.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "disk_tier/block_device.h"

namespace turnkeep {

class MemoryDisk {
 public:
  // `capacity_bytes` bounds the sum of file sizes (CreateFile: ResourceExhausted).
  explicit MemoryDisk(uint64_t capacity_bytes = UINT64_MAX) : capacity_bytes_(capacity_bytes) {}

  // A power cut: every block written since its file's last sync keeps its new or its
  // old content by a coin of `seed`. No operation may be running.
  void LoseUnsynced(uint64_t seed);
  // Direct access to a file's bytes, for tests that damage them.
  void FlipBit(uint32_t file, uint64_t offset, int bit);
  std::vector<std::byte> Contents(uint32_t file) const;

 private:
  friend class MemoryBlockDevice;  // in memory_block_device.cc
  struct File {
    std::vector<std::byte> bytes;
    std::map<uint64_t, std::vector<std::byte>> unsynced;  // block index -> content at last sync
  };

  absl::Status Create(uint32_t file, uint64_t bytes);
  absl::Status Transfer(const IoRequest& request);

  const uint64_t capacity_bytes_;
  mutable absl::Mutex mutex_;
  std::map<uint32_t, File> files_ ABSL_GUARDED_BY(mutex_);
};

// shared_ptr: the test and the devices opened over it, one after the other.
std::unique_ptr<BlockDevice> OpenMemoryBlockDevice(std::shared_ptr<MemoryDisk> disk,
                                                   uint64_t seed = 1);

}  // namespace turnkeep
