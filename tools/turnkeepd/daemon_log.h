// The daemon's log: one line an event, as text or as JSON.
#pragma once

#include <absl/status/status.h>

#include "api/config.h"

namespace turnkeep {

// Makes spdlog's default logger what log.level, log.format and log.file say.
absl::Status StartLog(const DaemonConfig& config);

}  // namespace turnkeep
