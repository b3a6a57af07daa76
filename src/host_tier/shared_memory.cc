#include "host_tier/shared_memory.h"

#include <cerrno>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/check.h"
#include "core/status.h"
#include "core/units.h"

namespace turnkeep {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Failure to get memory is a limit whatever the errno: EAGAIN, EMFILE and ENOMEM are all
// "not now, not this much".
absl::Status Failed(const char* call, const std::string& name, uint64_t bytes) {
  return ResourceExhausted("{} of {} bytes of shared memory {}: {}", call, bytes, name,
                           MessageOf(ErrnoStatus(errno, call)));
}

// Advice only: a kernel that refuses it changes nothing else. A core dump is for finding a bug,
// gigabytes of users' KV do not belong in it. Huge pages spare faults, address translation and
// pieces of each direct read; the kernel gives them where shmem_enabled says `advise`.
void Advise(void* data, uint64_t bytes) {
  (void)madvise(data, bytes, MADV_DONTDUMP);
  (void)madvise(data, bytes, MADV_HUGEPAGE);
}

}  // namespace

std::string TransparentHugePagesOfSharedMemory() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const std::string settings{std::istreambuf_iterator<char>(file), {}};
  const size_t begin = settings.find('[');
  const size_t end = settings.find(']');
  if (begin == std::string::npos || end == std::string::npos || end < begin) return "unknown";
  return settings.substr(begin + 1, end - begin - 1);
}

absl::StatusOr<SharedMemory> SharedMemory::Create(const std::string& name, uint64_t bytes,
                                                  PageSize page_size) {
  const bool huge = page_size == PageSize::kHuge;
  TK_CHECK(bytes > 0 && bytes % (huge ? kHugePageBytes : kBlockBytes) == 0);
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
  // From here on the destructor cleans up after a failure.
  SharedMemory result(memfd_create(name.c_str(), flags), nullptr, bytes);
  if (result.fd_ < 0) return Failed("memfd_create", name, bytes);
  if (ftruncate(result.fd_, static_cast<off_t>(bytes)) != 0)
    return Failed("ftruncate", name, bytes);
  if (fcntl(result.fd_, F_ADD_SEALS, kSizeSeals) != 0) return Failed("F_ADD_SEALS", name, bytes);
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, result.fd_, 0);
  if (data == MAP_FAILED) return Failed("mmap", name, bytes);
  result.data_ = static_cast<std::byte*>(data);
  Advise(data, bytes);
  return result;
}

absl::StatusOr<SharedMemory> SharedMemory::Map(int fd, uint64_t bytes) {
  SharedMemory result(fd, nullptr, bytes);
  struct stat info {};
  if (bytes == 0 || fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) != bytes) {
    return InvalidArgument("shared memory: descriptor has {} bytes, {} were announced",
                           static_cast<int64_t>(info.st_size), bytes);
  }
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return InvalidArgument("shared memory: the size of the descriptor is not sealed");
  }
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return Failed("mmap", "of the other side", bytes);
  result.data_ = static_cast<std::byte*>(data);
  Advise(data, bytes);
  return result;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  // The old resources leave with `other`'s destructor.
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void SharedMemory::CloseDescriptor() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
  if (fd_ >= 0) close(fd_);
}

}  // namespace turnkeep
