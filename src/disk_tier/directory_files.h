// DirectoryFiles: the numbered files of one directory and their descriptors, shared by the
// block devices that use the file system.
//
// Thread-safe. Everything but Find blocks on I/O.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>

#include "disk_tier/block_device.h"

namespace turnkeep {

class DirectoryFiles {
 public:
  // Makes `directory` (0700) where missing and finds out by a trial file whether direct
  // I/O works there. Unavailable when it does not and `options.allow_buffered` is false.
  static absl::StatusOr<std::unique_ptr<DirectoryFiles>> Open(const std::string& directory,
                                                              const BlockDeviceOptions& options);
  ~DirectoryFiles();
  DirectoryFiles(const DirectoryFiles&) = delete;
  DirectoryFiles& operator=(const DirectoryFiles&) = delete;

  // As the calls of the same names in BlockDevice.
  absl::Status CreateFile(uint32_t file, uint64_t bytes);
  absl::StatusOr<uint64_t> OpenFile(uint32_t file);
  absl::Status DeleteFile(uint32_t file);
  absl::StatusOr<std::vector<DeviceFile>> ListFiles();

  struct Handle {
    int fd = -1;
    uint64_t bytes = 0;
  };
  // InvalidArgument when `file` is not open. Does not block.
  absl::StatusOr<Handle> Find(uint32_t file) const;

  bool direct() const { return direct_; }
  // "direct I/O", or "buffered I/O (why)".
  const std::string& access() const { return access_; }
  std::string NameOf(uint32_t file) const;  // "00000001.tkx"

 private:
  DirectoryFiles(std::string directory, int directory_fd)
      : directory_(std::move(directory)), directory_fd_(directory_fd) {}
  absl::Status TryDirectIo();
  int OpenFlags() const;
  absl::Status Reserve(int fd, uint64_t bytes, const std::string& name);

  const std::string directory_;
  const int directory_fd_;
  bool direct_ = false;  // set in Open
  std::string access_;   // set in Open
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint32_t, Handle> open_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace turnkeep
