#include "disk_tier/directory_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/status.h"
#include "core/units.h"
#include "disk_tier/aligned_buffer.h"

namespace turnkeep {
namespace {

constexpr char kSuffix[] = ".tkx";
constexpr size_t kDigits = 8;
constexpr char kTrialName[] = "direct_io.trial";

// The number in "00000012.tkx"; 0 for any other name.
uint32_t NumberOf(const char* name) {
  if (std::strlen(name) != kDigits + sizeof(kSuffix) - 1) return 0;
  if (std::strcmp(name + kDigits, kSuffix) != 0) return 0;
  uint32_t number = 0;
  for (size_t i = 0; i < kDigits; ++i) {
    if (name[i] < '0' || name[i] > '9') return 0;
    number = number * 10 + static_cast<uint32_t>(name[i] - '0');
  }
  return number;
}

// File systems without fallocate get zeros, so that a later write cannot find the disk full.
absl::Status WriteZeros(int fd, uint64_t bytes, const std::string& name) {
  AlignedBuffer zeros(kMiB);
  for (uint64_t offset = 0; offset < bytes;) {
    ssize_t n = pwrite(fd, zeros.data(), std::min<uint64_t>(zeros.size(), bytes - offset),
                       static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(n < 0 ? errno : ENOSPC, "reserve " + name);
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DirectoryFiles>> DirectoryFiles::Open(
    const std::string& directory, const BlockDeviceOptions& options) {
  std::error_code error;
  bool made = std::filesystem::create_directories(directory, error);
  if (error) return ErrnoStatus(error.value(), "create directory " + directory);
  if (made && chmod(directory.c_str(), 0700) != 0) {
    return ErrnoStatus(errno, "chmod 0700 " + directory);
  }
  int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open directory " + directory);
  std::unique_ptr<DirectoryFiles> files(new DirectoryFiles(directory, fd));
  if (!options.direct_io) {
    files->access_ = "buffered I/O (direct I/O turned off)";
    return files;
  }
  absl::Status direct = files->TryDirectIo();
  if (direct.ok()) {
    files->direct_ = true;
    files->access_ = "direct I/O";
    return files;
  }
  if (!options.allow_buffered || absl::IsResourceExhausted(direct)) return direct;
  files->access_ = "buffered I/O (" + MessageOf(direct) + ")";
  return files;
}

DirectoryFiles::~DirectoryFiles() {
  absl::MutexLock lock(&mutex_);
  for (auto& [number, handle] : open_) close(handle.fd);
  close(directory_fd_);
}

// One block written and read back through O_DIRECT. Newer kernels accept O_DIRECT on
// tmpfs and then copy through the page cache anyway, so tmpfs is asked for by name.
absl::Status DirectoryFiles::TryDirectIo() {
  struct statfs fs {};
  if (fstatfs(directory_fd_, &fs) != 0) return ErrnoStatus(errno, "statfs " + directory_);
  if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC) {
    return Unavailable("direct I/O on {}: the file system is memory", directory_);
  }
  int fd =
      openat(directory_fd_, kTrialName, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
  if (fd < 0) {
    int saved = errno;
    unlinkat(directory_fd_, kTrialName, 0);  // some file systems create it and then refuse
    return ErrnoStatus(saved, "direct I/O on " + directory_);
  }
  AlignedBuffer block(kBlockBytes);
  std::memset(block.data(), 0x5A, kBlockBytes);
  bool ok = pwrite(fd, block.data(), kBlockBytes, 0) == ssize_t{kBlockBytes} &&
            pread(fd, block.data(), kBlockBytes, 0) == ssize_t{kBlockBytes};
  int saved = errno;
  close(fd);
  unlinkat(directory_fd_, kTrialName, 0);
  return ok ? absl::OkStatus() : ErrnoStatus(saved, "direct I/O on " + directory_);
}

int DirectoryFiles::OpenFlags() const { return O_RDWR | O_CLOEXEC | (direct_ ? O_DIRECT : 0); }

std::string DirectoryFiles::NameOf(uint32_t file) const {
  return fmt::format("{:08}{}", file, kSuffix);
}

absl::Status DirectoryFiles::Reserve(int fd, uint64_t bytes, const std::string& name) {
  int error = 0;
  do {
    error = fallocate(fd, 0, 0, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP) {
    TK_RETURN_IF_ERROR(WriteZeros(fd, bytes, name));
  } else if (error != 0) {
    return ErrnoStatus(error, fmt::format("reserve {} bytes for {}/{}", bytes, directory_, name));
  }
  if (fsync(fd) != 0) return ErrnoStatus(errno, "sync new file " + name);
  if (fsync(directory_fd_) != 0) return ErrnoStatus(errno, "sync directory " + directory_);
  return absl::OkStatus();
}

absl::Status DirectoryFiles::CreateFile(uint32_t file, uint64_t bytes) {
  if (file == 0 || file > 99'999'999 || bytes == 0 || bytes % kBlockBytes != 0) {
    return InvalidArgument("create file {} of {} bytes: number or size", file, bytes);
  }
  std::string name = NameOf(file);
  int fd = openat(directory_fd_, name.c_str(), OpenFlags() | O_CREAT | O_EXCL, 0600);
  if (fd < 0 && errno == EEXIST) return AlreadyExists("create {}/{}: it exists", directory_, name);
  if (fd < 0) return ErrnoStatus(errno, "create " + directory_ + "/" + name);
  absl::Status reserved = Reserve(fd, bytes, name);
  if (!reserved.ok()) {
    close(fd);
    unlinkat(directory_fd_, name.c_str(), 0);
    return reserved;
  }
  absl::MutexLock lock(&mutex_);
  open_[file] = {fd, bytes};
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> DirectoryFiles::OpenFile(uint32_t file) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto it = open_.find(file); it != open_.end()) return it->second.bytes;
  }
  std::string name = NameOf(file);
  int fd = openat(directory_fd_, name.c_str(), OpenFlags());
  if (fd < 0) return ErrnoStatus(errno, "open " + directory_ + "/" + name);
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    int saved = errno;
    close(fd);
    return ErrnoStatus(saved, "stat " + directory_ + "/" + name);
  }
  absl::MutexLock lock(&mutex_);
  auto [it, added] = open_.try_emplace(file, Handle{fd, static_cast<uint64_t>(info.st_size)});
  if (!added) close(fd);  // another thread was first
  return it->second.bytes;
}

absl::Status DirectoryFiles::DeleteFile(uint32_t file) {
  std::string name = NameOf(file);
  if (unlinkat(directory_fd_, name.c_str(), 0) != 0) {
    return ErrnoStatus(errno, "delete " + directory_ + "/" + name);
  }
  {
    absl::MutexLock lock(&mutex_);
    if (auto it = open_.find(file); it != open_.end()) {
      close(it->second.fd);
      open_.erase(it);
    }
  }
  if (fsync(directory_fd_) != 0) return ErrnoStatus(errno, "sync directory " + directory_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<DeviceFile>> DirectoryFiles::ListFiles() {
  int fd = openat(directory_fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "list " + directory_);
  DIR* stream = fdopendir(fd);  // owns fd
  if (stream == nullptr) {
    int saved = errno;
    close(fd);
    return ErrnoStatus(saved, "list " + directory_);
  }
  std::vector<DeviceFile> files;
  absl::Status status;
  errno = 0;
  while (const dirent* entry = readdir(stream)) {
    uint32_t number = NumberOf(entry->d_name);
    if (number == 0) continue;
    struct stat info {};
    if (fstatat(directory_fd_, entry->d_name, &info, 0) != 0) {
      status = ErrnoStatus(errno, "stat " + directory_ + "/" + entry->d_name);
      break;
    }
    files.push_back({number, static_cast<uint64_t>(info.st_size)});
    errno = 0;
  }
  if (status.ok() && errno != 0) status = ErrnoStatus(errno, "list " + directory_);
  closedir(stream);
  TK_RETURN_IF_ERROR(status);
  std::sort(files.begin(), files.end(),
            [](const DeviceFile& a, const DeviceFile& b) { return a.file < b.file; });
  return files;
}

absl::StatusOr<DirectoryFiles::Handle> DirectoryFiles::Find(uint32_t file) const {
  absl::ReaderMutexLock lock(&mutex_);
  auto it = open_.find(file);
  if (it == open_.end()) return InvalidArgument("file {} is not open", file);
  return it->second;
}

}  // namespace turnkeep
