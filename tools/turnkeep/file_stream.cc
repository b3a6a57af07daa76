#include "file_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/status.h"

namespace turnkeep {
namespace {

constexpr size_t kMaxIoBytes = size_t{1} << 30;  // below what one write or read may do

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, "open " + folder);
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  // Some file systems cannot sync a folder; the file itself is synced.
  return result == 0 || error == EINVAL ? absl::OkStatus() : ErrnoStatus(error, "sync " + folder);
}

}  // namespace

FileSink::FileSink(std::string path, std::string temporary, int fd, bool replace)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd), replace_(replace) {}

FileSink::~FileSink() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::StatusOr<std::unique_ptr<FileSink>> FileSink::Create(const std::string& path, bool replace) {
  struct stat existing {};
  if (stat(path.c_str(), &existing) == 0) {
    if (!S_ISREG(existing.st_mode)) return InvalidArgument("{}: is not a regular file", path);
    if (!replace) return AlreadyExists("{}: exists; --force replaces it", path);
  }
  std::string temporary = path + ".partial-XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return InvalidArgument("{}: create: {}", path, std::strerror(errno));
  return std::unique_ptr<FileSink>(new FileSink(path, std::move(temporary), fd, replace));
}

absl::Status FileSink::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd_, bytes.data(), std::min(bytes.size(), kMaxIoBytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, "write " + temporary_);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status FileSink::Finish() {
  if (fsync(fd_) != 0) return ErrnoStatus(errno, "sync " + temporary_);
  const int closed = close(std::exchange(fd_, -1));
  if (closed != 0) return ErrnoStatus(errno, "close " + temporary_);
  if (replace_) {
    if (rename(temporary_.c_str(), path_.c_str()) != 0)
      return ErrnoStatus(errno, "rename " + path_);
  } else {
    // A link fails where a rename would replace what appeared meanwhile.
    if (link(temporary_.c_str(), path_.c_str()) != 0) {
      if (errno == EEXIST) return AlreadyExists("{}: exists; --force replaces it", path_);
      if (rename(temporary_.c_str(), path_.c_str()) != 0) {  // a file system without links
        return ErrnoStatus(errno, "rename " + path_);
      }
    } else {
      unlink(temporary_.c_str());
    }
  }
  temporary_.clear();
  return SyncFolder(FolderOf(path_));
}

FileSource::FileSource(std::string path, int fd, uint64_t size_bytes)
    : path_(std::move(path)), fd_(fd), size_bytes_(size_bytes) {}

FileSource::~FileSource() { close(fd_); }

absl::StatusOr<std::unique_ptr<FileSource>> FileSource::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return InvalidArgument("{}: {}", path, std::strerror(errno));
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(fd);
    return InvalidArgument("{}: is not a regular file", path);
  }
  return std::unique_ptr<FileSource>(
      new FileSource(path, fd, static_cast<uint64_t>(status.st_size)));
}

absl::Status FileSource::Read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = read(fd_, bytes.data(), std::min(bytes.size(), kMaxIoBytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(errno, "read " + path_);
    if (count == 0) {
      return DataLoss("session file byte {}: {} ends here, it had {} bytes", offset_, path_,
                      size_bytes_);
    }
    offset_ += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

}  // namespace turnkeep
