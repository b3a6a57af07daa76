// FaultBlockDevice: a BlockDevice that wraps another and goes wrong on purpose.
//
// Every operation has a number, from 0, in the order of arrival: reads, writes, syncs,
// and the file calls too. A fault names a number and what happens there, once or from
// there on. Thread-safe.
//
//   FaultBlockDevice device(OpenMemoryBlockDevice(disk));
//   device.Inject({.at = 17, .kind = FaultKind::kEio});
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "disk_tier/block_device.h"

namespace turnkeep {

enum class DeviceOp : uint8_t { kRead = 1, kWrite, kSync, kCreate, kOpen, kDelete, kList };
const char* NameOf(DeviceOp op);

enum class FaultKind : uint8_t {
  kEio = 1,    // fails with Unavailable, nothing transferred
  kNoSpace,    // fails with ResourceExhausted, nothing transferred
  kShort,      // transfers `bytes` bytes, then reports success with that count: a device
               // that breaks the promise of whole transfers; the callers must notice
  kTorn,       // write: the first `bytes` bytes land; reported as success
  kBitFlip,    // read: one bit of the buffer; write: one bit of what lands. Success
  kMisdirect,  // read from / write to `offset_shift` bytes further (wraps in the file). Success
  kDrop,       // write or sync: does nothing, reports success
  kDelay,      // waits until Release()
};
const char* NameOf(FaultKind kind);

struct Fault {
  uint64_t at = 0;
  FaultKind kind = FaultKind::kEio;
  bool for_good = false;        // and every later operation that `only` admits
  uint64_t bytes = 0;           // kShort, kTorn
  uint64_t bit = 0;             // kBitFlip: bit number in the buffer, modulo its size
  int64_t offset_shift = 4096;  // kMisdirect
  // Operations that the fault applies to; unset: every kind. `at` still counts all.
  std::vector<DeviceOp> only;
};

struct TracedOp {
  uint64_t number = 0;
  DeviceOp op = DeviceOp::kRead;
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  bool faulted = false;
};
std::string ToString(const TracedOp& op);

class FaultBlockDevice : public BlockDevice {
 public:
  explicit FaultBlockDevice(std::unique_ptr<BlockDevice> device);
  // Releases what is delayed, then waits.
  ~FaultBlockDevice() override;

  void Inject(const Fault& fault);
  void ClearFaults();
  // A crash: of the operations numbered >= `at`, no write, sync, create or delete takes
  // effect, all report success. Reads see what is there.
  void DropAllAfter(uint64_t at);
  // Lets delayed operations go on, and later ones pass undelayed.
  void Release();
  // Blocks until `count` operations are being delayed.
  void WaitForDelayed(uint32_t count);

  uint64_t operation_count() const;  // numbers given so far
  std::vector<TracedOp> Trace() const;

  absl::Status CreateFile(uint32_t file, uint64_t bytes) override;
  absl::StatusOr<uint64_t> OpenFile(uint32_t file) override;
  absl::Status DeleteFile(uint32_t file) override;
  absl::StatusOr<std::vector<DeviceFile>> ListFiles() override;
  absl::Status Submit(std::span<IoRequest> requests) override;
  void RegisterMemory(std::span<std::byte> memory) override;
  void UnregisterMemory(std::span<std::byte> memory) override;
  std::string Describe() const override;
  BlockDeviceStats Stats() const override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace turnkeep
