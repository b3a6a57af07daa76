// IoMerger: makes one device request of neighbours that are adjacent on disk and in memory.
//
// Not thread-safe; used once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "disk_tier/block_device.h"

namespace turnkeep {

class IoMerger {
 public:
  struct Piece {
    uint32_t file = 0;
    uint64_t offset = 0;  // in the file
    std::span<std::byte> buffer;
    IoDone* done = nullptr;  // moved from by a Submit that succeeds
  };

  explicit IoMerger(IoOp op) : op_(op) {}

  void Add(const Piece& piece);
  // All pieces or none. Each `done` gets its own piece's bytes; a transfer that was not
  // whole is an error to every piece of it.
  absl::Status Submit(BlockDevice& device);

 private:
  const IoOp op_;
  std::vector<std::vector<Piece>> groups_;
  uint64_t group_bytes_ = 0;  // of the last group
};

}  // namespace turnkeep
