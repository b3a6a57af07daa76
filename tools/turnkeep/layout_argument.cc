#include "layout_argument.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/status.h"
#include "sessions.h"
#include "token_file.h"

namespace turnkeep {

absl::StatusOr<Fingerprint> ResolveLayout(KvStore& store, const std::string& text) {
  if (auto whole = Fingerprint::FromHex(text); whole.ok()) return whole;
  if (std::filesystem::exists(text)) {
    TK_ASSIGN_OR_RETURN(const KvLayout layout, ReadLayoutFile(text));
    return store.RegisterLayout(layout);
  }
  const bool hex = text.find_first_not_of("0123456789abcdef") == std::string::npos;
  std::vector<Fingerprint> found;
  if (hex && text.size() >= 4) {
    TK_ASSIGN_OR_RETURN(const std::vector<SessionInfo> sessions, ListAll(store, ""));
    for (const SessionInfo& info : sessions) {
      const bool known = std::find(found.begin(), found.end(), info.layout) != found.end();
      if (!known && info.layout.Hex().starts_with(text)) found.push_back(info.layout);
    }
  }
  if (found.size() == 1) return found.front();
  return InvalidArgument(
      "--layout: \"{}\" is no file, no fingerprint of 64 digits, and the beginning of the layouts "
      "of {} kinds of sessions",
      text, found.size());
}

}  // namespace turnkeep
