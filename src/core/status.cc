#include "core/status.h"

#include <cerrno>
#include <system_error>

namespace turnkeep {

absl::Status ErrnoStatus(int errno_value, const std::string& operation_and_object) {
  // generic_category().message() is the thread-safe strerror.
  const std::string message =
      fmt::format("{}: {} (errno {})", operation_and_object,
                  std::generic_category().message(errno_value), errno_value);
  switch (errno_value) {
    case ENOSPC:
    case ENOMEM:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace turnkeep
