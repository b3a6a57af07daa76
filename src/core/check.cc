#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace turnkeep::internal {

void CheckFailed(const char* file, int line, const char* condition) {
  // stdio, not the log: the log's own state may be what is broken.
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace turnkeep::internal
