// Error helpers. Every fallible function returns absl::Status or absl::StatusOr<T>.
//
// The codes mean one thing each throughout Turnkeep:
//   NotFound            a miss: the object is not stored
//   ResourceExhausted   a limit or a full tier
//   DataLoss            a digest did not match; the copy has been dropped
//   Unavailable         shutting down, disconnected, or a device is lost
//   FailedPrecondition  old generation, or wrong state for the call
//   InvalidArgument     the caller's mistake; the message names field and value
//   PermissionDenied    the tenant may not do this
//   DeadlineExceeded    the caller's deadline passed; nothing half-done is visible
//   Internal            our bug
#pragma once

#include <string>
#include <utility>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <fmt/format.h>

namespace turnkeep {

template <typename... Args>
absl::Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return absl::NotFoundError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status ResourceExhausted(fmt::format_string<Args...> format, Args&&... args) {
  return absl::ResourceExhaustedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status DataLoss(fmt::format_string<Args...> format, Args&&... args) {
  return absl::DataLossError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return absl::UnavailableError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status FailedPrecondition(fmt::format_string<Args...> format, Args&&... args) {
  return absl::FailedPreconditionError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status PermissionDenied(fmt::format_string<Args...> format, Args&&... args) {
  return absl::PermissionDeniedError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status DeadlineExceeded(fmt::format_string<Args...> format, Args&&... args) {
  return absl::DeadlineExceededError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status AlreadyExists(fmt::format_string<Args...> format, Args&&... args) {
  return absl::AlreadyExistsError(fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
absl::Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return absl::InternalError(fmt::format(format, std::forward<Args>(args)...));
}

// "operation object: strerror(errno_value)", with the code that fits the errno
// (ENOSPC and ENOMEM: ResourceExhausted; ENOENT: NotFound; EACCES, EPERM:
// PermissionDenied; others: Unavailable).
absl::Status ErrnoStatus(int errno_value, const std::string& operation_and_object);

// The message of `status`, as std::string (absl's string_view is its own type here).
inline std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

}  // namespace turnkeep

#define TK_RETURN_IF_ERROR(expr)                                               \
  do {                                                                         \
    if (absl::Status tk_status_ = (expr); !tk_status_.ok()) return tk_status_; \
  } while (false)

#define TK_CONCAT_INNER_(a, b) a##b
#define TK_CONCAT_(a, b) TK_CONCAT_INNER_(a, b)
#define TK_ASSIGN_OR_RETURN(lhs, expr) \
  TK_ASSIGN_OR_RETURN_IMPL_(TK_CONCAT_(tk_or_, __LINE__), lhs, expr)
#define TK_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return tmp.status();             \
  lhs = std::move(tmp).value()
