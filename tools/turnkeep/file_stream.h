// Files behind core/session_file.h.
//
// Not thread-safe. Blocks on the file system.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include "core/session_file.h"

namespace turnkeep {

// A file that appears under its name only when it is whole: written to a temporary name in
// the same folder, synced and renamed by Finish. Without Finish nothing is left behind.
class FileSink : public ByteSink {
 public:
  // AlreadyExists: `path` does and `replace` is false.
  static absl::StatusOr<std::unique_ptr<FileSink>> Create(const std::string& path, bool replace);
  ~FileSink() override;

  absl::Status Append(std::span<const std::byte> bytes) override;
  absl::Status Finish();

 private:
  FileSink(std::string path, std::string temporary, int fd, bool replace);

  const std::string path_;
  std::string temporary_;  // empty after Finish
  int fd_;
  const bool replace_;
};

class FileSource : public ByteSource {
 public:
  // InvalidArgument: not there, not readable or not a regular file.
  static absl::StatusOr<std::unique_ptr<FileSource>> Open(const std::string& path);
  ~FileSource() override;

  uint64_t size_bytes() const override { return size_bytes_; }
  // DataLoss when the file has become shorter meanwhile.
  absl::Status Read(std::span<std::byte> bytes) override;

 private:
  FileSource(std::string path, int fd, uint64_t size_bytes);

  const std::string path_;
  const int fd_;
  const uint64_t size_bytes_;
  uint64_t offset_ = 0;
};

}  // namespace turnkeep
