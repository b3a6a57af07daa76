// A sealed memfd and its mapping: memory that two processes share.
//
// The owner creates it and hands the descriptor over a Unix socket; the other side maps it.
// The size is sealed, so neither side can make the other fault by truncating it.
//
// Thread-safe: constant once set up. Move-only; the destructor unmaps and closes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <absl/status/statusor.h>

namespace turnkeep {

inline constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;

enum class PageSize : uint8_t { kNormal, kHuge };

// The kernel's setting for transparent huge pages of shared memory, as in `shmem_enabled`:
// always, within_size, advise, never, deny, force; "unknown" where it cannot be read.
std::string TransparentHugePagesOfSharedMemory();

class SharedMemory {
 public:
  // New zeroed memory of `bytes`, a multiple of 4096 (of kHugePageBytes for kHuge). `name` is
  // for people (/proc/PID/maps). Pages are allocated when first touched, huge ones at
  // once from the system's pool. Normal ones are huge too where the kernel does that by itself.
  // ResourceExhausted when the system has no more memory, address space or descriptors.
  static absl::StatusOr<SharedMemory> Create(const std::string& name, uint64_t bytes,
                                             PageSize page_size);

  // Maps the other side's memory; takes `fd` over, also on failure. InvalidArgument unless
  // it is a memfd of exactly `bytes` whose size is sealed.
  static absl::StatusOr<SharedMemory> Map(int fd, uint64_t bytes);

  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  std::span<std::byte> memory() const { return {data_, bytes_}; }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_; }  // borrowed
  // Keeps the mapping only: an engine that maps thousands of segments needs its descriptors.
  void CloseDescriptor();

 private:
  SharedMemory(int fd, std::byte* data, uint64_t bytes) : fd_(fd), data_(data), bytes_(bytes) {}

  int fd_ = -1;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace turnkeep
