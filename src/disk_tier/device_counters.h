// DeviceCounters: the running totals behind BlockDevice::Stats.
//
// Thread-safe: relaxed atomics, since each counter is read alone and orders nothing.
#pragma once

#include <atomic>
#include <cstdint>

#include "disk_tier/block_device.h"

namespace turnkeep {

class DeviceCounters {
 public:
  void Count(IoOp op, uint64_t bytes, bool ok) {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    if (op == IoOp::kRead) {
      reads_.fetch_add(1, kRelaxed);
      read_bytes_.fetch_add(bytes, kRelaxed);
    } else if (op == IoOp::kWrite) {
      writes_.fetch_add(1, kRelaxed);
      write_bytes_.fetch_add(bytes, kRelaxed);
    } else {
      syncs_.fetch_add(1, kRelaxed);
    }
    if (!ok) errors_.fetch_add(1, kRelaxed);
  }

  BlockDeviceStats Read(uint32_t in_flight, uint32_t queued) const {
    return {.reads = reads_.load(std::memory_order_relaxed),
            .read_bytes = read_bytes_.load(std::memory_order_relaxed),
            .writes = writes_.load(std::memory_order_relaxed),
            .write_bytes = write_bytes_.load(std::memory_order_relaxed),
            .syncs = syncs_.load(std::memory_order_relaxed),
            .errors = errors_.load(std::memory_order_relaxed),
            .in_flight = in_flight,
            .queued = queued};
  }

 private:
  std::atomic<uint64_t> reads_{0}, read_bytes_{0}, writes_{0}, write_bytes_{0}, syncs_{0},
      errors_{0};
};

}  // namespace turnkeep
