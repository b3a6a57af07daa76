// The block device on io_uring: one ring, and one thread that submits and reaps.
#pragma once

#include <memory>

#include <absl/status/statusor.h>

#include "disk_tier/block_device.h"
#include "disk_tier/directory_files.h"

namespace turnkeep {

// Unavailable or PermissionDenied, naming the system call, where the kernel refuses io_uring.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenUringBlockDevice(
    std::unique_ptr<DirectoryFiles> files, const BlockDeviceOptions& options);

}  // namespace turnkeep
