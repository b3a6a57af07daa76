#include "core/kv_types.h"

namespace turnkeep {

std::string_view NameOf(Tier tier) {
  switch (tier) {
    case Tier::kNone:
      return "none";
    case Tier::kHost:
      return "host";
    case Tier::kGpu:
      return "gpu";
    case Tier::kDisk:
      return "disk";
  }
  return "unknown";
}

}  // namespace turnkeep
