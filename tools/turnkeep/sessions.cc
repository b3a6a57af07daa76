#include "sessions.h"

#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "core/status.h"
#include "human.h"

namespace turnkeep {

absl::StatusOr<std::vector<SessionInfo>> ListAll(KvStore& store, const std::string& prefix) {
  std::vector<SessionInfo> all;
  ListRequest request{.name_prefix = prefix};
  while (true) {
    TK_ASSIGN_OR_RETURN(std::vector<SessionInfo> page, store.ListSessions(request));
    const bool last = page.size() < request.limit;
    all.insert(all.end(), std::make_move_iterator(page.begin()),
               std::make_move_iterator(page.end()));
    if (last) return all;
    request.after = all.back().name;
  }
}

Table SessionTable(const std::vector<SessionInfo>& sessions, int64_t now_unix_s) {
  Table table({{"SESSION"},
               {"TOKENS", Align::kRight},
               {"STORED", Align::kRight},
               {"KV", Align::kRight},
               {"GPU", Align::kRight},
               {"HOST", Align::kRight},
               {"DISK", Align::kRight},
               {"SHARED", Align::kRight},
               {"LAST USE"},
               {"PIN"},
               {"EXPIRES"},
               {"MODEL"}});
  for (const SessionInfo& info : sessions) {
    table.AddRow({info.name, HumanCount(info.token_count),
                  HumanShare(info.restorable_tokens, info.token_count), HumanBytes(info.kv_bytes),
                  info.gpu_bytes == 0 ? "" : HumanBytes(info.gpu_bytes),
                  HumanBytes(info.host_bytes), HumanBytes(info.disk_bytes),
                  HumanShare(info.shared_chunks, info.chunk_count),
                  HumanAgo(info.last_used_unix_s, now_unix_s), info.pinned ? "pin" : "",
                  HumanIn(info.expires_unix_s, now_unix_s), info.model});
  }
  return table;
}

Fields SessionFields(const SessionInfo& info, int64_t now_unix_s) {
  Fields fields;
  fields.Add("session", info.name + (info.truncated ? " (truncated)" : ""));
  fields.Add("generation", std::to_string(info.generation));
  fields.Add("model", info.model);
  fields.Add("layout", info.layout.Hex());
  fields.Add("tokens", fmt::format("{}, {} restorable", HumanCount(info.token_count),
                                   HumanCount(info.restorable_tokens)));
  fields.Add("chunks", fmt::format("{}, {} shared with other sessions",
                                   HumanCount(info.chunk_count), HumanCount(info.shared_chunks)));
  fields.Add("KV", fmt::format("{} (slots: host {}, disk {})", HumanBytes(info.kv_bytes),
                               HumanBytes(info.host_bytes), HumanBytes(info.disk_bytes)));
  if (info.gpu_bytes > 0)
    fields.Add("gpu", HumanBytes(info.gpu_bytes) + " in page pools of engines");
  fields.Add("created", HumanAgo(info.created_unix_s, now_unix_s));
  fields.Add("last use", HumanAgo(info.last_used_unix_s, now_unix_s));
  fields.Add("expires", HumanIn(info.expires_unix_s, now_unix_s));
  fields.Add("pinned", info.pinned ? "yes" : "no");
  return fields;
}

}  // namespace turnkeep
