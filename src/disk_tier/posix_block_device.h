// The block device for machines without io_uring: threads that call pread and pwrite.
#pragma once

#include <memory>
#include <string>

#include "disk_tier/block_device.h"
#include "disk_tier/directory_files.h"

namespace turnkeep {

// `reason` is why this device is used, for Describe().
std::unique_ptr<BlockDevice> OpenPosixBlockDevice(std::unique_ptr<DirectoryFiles> files,
                                                  const BlockDeviceOptions& options,
                                                  std::string reason);

}  // namespace turnkeep
