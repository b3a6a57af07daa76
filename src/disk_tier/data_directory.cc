#include "disk_tier/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "core/status.h"

namespace turnkeep {
namespace {

constexpr size_t kMaxFormatBytes = 4096;

std::string FormatText(const StoreId& id) {
  return fmt::format("turnkeep data directory\nformat {}\nstore {}\n", kDataFormatVersion,
                     StoreIdHex(id));
}

absl::StatusOr<std::string> ReadAll(int fd, const std::string& name) {
  std::string text(kMaxFormatBytes, '\0');
  ssize_t n = pread(fd, text.data(), text.size(), 0);
  if (n < 0) return ErrnoStatus(errno, "read " + name);
  text.resize(static_cast<size_t>(n));
  return text;
}

// Written beside and renamed, so that FORMAT is whole or not there.
absl::Status WriteFormat(const std::string& directory, const StoreId& id) {
  std::string temporary = directory + "/FORMAT.new";
  int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, "create " + temporary);
  std::string text = FormatText(id);
  bool ok = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
            fsync(fd) == 0 && rename(temporary.c_str(), (directory + "/FORMAT").c_str()) == 0;
  int saved = errno;
  close(fd);
  if (!ok) return ErrnoStatus(saved, "write " + temporary);
  int directory_fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory_fd < 0) return ErrnoStatus(errno, "open " + directory);
  ok = fsync(directory_fd) == 0;
  saved = errno;
  close(directory_fd);
  return ok ? absl::OkStatus() : ErrnoStatus(saved, "sync " + directory);
}

absl::Status ParseFormat(const std::string& text, const std::string& name, StoreId* id) {
  unsigned version = 0;
  char hex[33] = {};
  if (std::sscanf(text.c_str(), "turnkeep data directory\nformat %u\n", &version) != 1) {
    return DataLoss("{} is not a Turnkeep format file", name);
  }
  if (version > kDataFormatVersion) {
    return FailedPrecondition("{}: format {}, this program knows up to {}; use a newer turnkeepd",
                              name, version, kDataFormatVersion);
  }
  if (std::sscanf(text.c_str(), "turnkeep data directory\nformat %u\nstore %32[0-9a-f]\n", &version,
                  hex) != 2 ||
      hex[31] == '\0') {
    return DataLoss("{}: the store's id is missing", name);
  }
  for (size_t i = 0; i < id->size(); ++i) {
    unsigned byte = 0;
    std::sscanf(hex + 2 * i, "%2x", &byte);
    (*id)[i] = static_cast<uint8_t>(byte);
  }
  if (text != FormatText(*id)) return DataLoss("{} holds more than it should", name);
  return absl::OkStatus();
}

absl::Status MakeDirectory(const std::string& path) {
  std::error_code error;
  bool made = std::filesystem::create_directories(path, error);
  if (error) return ErrnoStatus(error.value(), "create directory " + path);
  if (made && chmod(path.c_str(), 0700) != 0) return ErrnoStatus(errno, "chmod 0700 " + path);
  return absl::OkStatus();
}

}  // namespace

std::string StoreIdHex(const StoreId& id) {
  std::string hex;
  for (uint8_t byte : id) hex += fmt::format("{:02x}", byte);
  return hex;
}

// The lock is on a file of its own: FORMAT is replaced by renaming, which a lock on it
// would not survive.
absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& directory,
                                                                   Mode mode) {
  std::string format_name = directory + "/FORMAT";
  if (mode == Mode::kCreate) {
    TK_RETURN_IF_ERROR(MakeDirectory(directory));
  } else if (!std::filesystem::exists(format_name)) {
    return NotFound("{} is not a data directory: it has no FORMAT file", directory);
  }
  std::string lock_name = directory + "/LOCK";
  int lock_fd = open(lock_name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd < 0) return ErrnoStatus(errno, "open " + lock_name);
  std::unique_ptr<DataDirectory> opened(new DataDirectory(directory, lock_fd, StoreId{}));
  if (flock(lock_fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, "lock " + lock_name);
    return FailedPrecondition("data directory {} is in use by another process", directory);
  }
  int fd = open(format_name.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno != ENOENT) return ErrnoStatus(errno, "open " + format_name);
  if (fd < 0) {
    // A new store must not adopt what an old one left behind.
    if (std::filesystem::exists(opened->IndexPath() + "/CURRENT")) {
      return DataLoss("{} holds an index, but its FORMAT file is missing", directory);
    }
    StoreId id{};
    if (getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
      return ErrnoStatus(errno, "getrandom");
    }
    TK_RETURN_IF_ERROR(WriteFormat(directory, id));
    opened->store_id_ = id;
    return opened;
  }
  absl::StatusOr<std::string> text = ReadAll(fd, format_name);
  close(fd);
  TK_RETURN_IF_ERROR(text.status());
  TK_RETURN_IF_ERROR(ParseFormat(*text, format_name, &opened->store_id_));
  return opened;
}

DataDirectory::DataDirectory(std::string path, int lock_fd, StoreId store_id)
    : path_(std::move(path)), lock_fd_(lock_fd), store_id_(store_id) {}

DataDirectory::~DataDirectory() { close(lock_fd_); }

}  // namespace turnkeep
