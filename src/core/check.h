// Checks are for our own bugs; the world's errors travel as absl::Status.
// TK_CHECK stays on in release builds and must be O(1). TK_DCHECK is for debug builds.
#pragma once

namespace turnkeep::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
}  // namespace turnkeep::internal

#define TK_CHECK(condition)                                              \
  do {                                                                   \
    if (!(condition)) [[unlikely]]                                       \
      ::turnkeep::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#ifdef NDEBUG
#define TK_DCHECK(condition)    \
  do {                          \
    (void)sizeof(!(condition)); \
  } while (false)
#else
#define TK_DCHECK(condition) TK_CHECK(condition)
#endif
