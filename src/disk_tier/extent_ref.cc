#include "disk_tier/extent_ref.h"

#include <fmt/format.h>

namespace turnkeep {

std::string ToString(ExtentRef ref) {
  return ref.IsNull() ? "none" : fmt::format("{:08}:{}", ref.file, ref.slot);
}

}  // namespace turnkeep
