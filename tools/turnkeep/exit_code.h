// What the command's exit codes mean; docs/operations.md lists them for users.
#pragma once

#include <absl/status/status.h>

namespace turnkeep {

enum class ExitCode : int {
  kOk = 0,
  kProblemFound = 1,  // verify, fsck, import or export found damage
  kUsage = 2,         // a flag, a name or a file of the caller's is wrong
  kMiss = 3,          // no such session; explain: part of the context would be a miss
  kUnreachable = 4,   // no daemon answers, or not in time
  kRefused = 5,       // generation, existing name, limit or permission
  kInternal = 6,
};

ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace turnkeep
