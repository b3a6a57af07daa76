// The data directory: what lies where, its format version, and who has it open.
//
//   <dir>/FORMAT      text: format version and store id
//   <dir>/LOCK        empty; locked while in use
//   <dir>/index/      the index (RocksDB)
//   <dir>/extents/    00000001.tkx ... payload
//
// Thread-safe: const after Open.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <absl/status/statusor.h>

#include "disk_tier/extent_ref.h"

namespace turnkeep {

inline constexpr uint32_t kDataFormatVersion = 1;

// Holds the exclusive lock on a data directory until destroyed.
class DataDirectory {
 public:
  enum class Mode : uint8_t { kCreate = 1, kExisting };

  // Makes the directory (0700) and FORMAT where missing and Mode is kCreate. NotFound: none
  // there. FailedPrecondition: in use by another process, or of a newer format.
  // DataLoss: FORMAT cannot be understood.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& directory,
                                                             Mode mode);
  ~DataDirectory();
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string IndexPath() const { return path_ + "/index"; }
  std::string ExtentsPath() const { return path_ + "/extents"; }
  const StoreId& store_id() const { return store_id_; }

 private:
  DataDirectory(std::string path, int lock_fd, StoreId store_id);
  std::string path_;
  int lock_fd_;
  StoreId store_id_;
};

std::string StoreIdHex(const StoreId& id);

}  // namespace turnkeep
