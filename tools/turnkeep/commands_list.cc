// turnkeep ls and turnkeep show.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "sessions.h"

namespace turnkeep {
namespace {

// ---- ls --------------------------------------------------------------------------

struct ListOptions {
  std::string prefix;
  std::string sort = "name";
  uint64_t limit = 0;  // 0: all
  bool names = false;
};

void SortSessions(const std::string& by, std::vector<SessionInfo>* sessions) {
  const auto descending = [&](auto key) {
    std::stable_sort(sessions->begin(), sessions->end(),
                     [&](const auto& a, const auto& b) { return key(a) > key(b); });
  };
  if (by == "tokens") descending([](const SessionInfo& info) { return info.token_count; });
  if (by == "bytes") descending([](const SessionInfo& info) { return info.kv_bytes; });
  if (by == "used") descending([](const SessionInfo& info) { return info.last_used_unix_s; });
}

absl::StatusOr<ExitCode> RunList(Invocation& invocation, const ListOptions& options) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  TK_ASSIGN_OR_RETURN(std::vector<SessionInfo> sessions, ListAll(*store, options.prefix));
  SortSessions(options.sort, &sessions);
  if (options.limit > 0 && sessions.size() > options.limit) sessions.resize(options.limit);
  if (options.names) {
    for (const SessionInfo& info : sessions) invocation.Print("{}\n", info.name);
    return ExitCode::kOk;
  }
  if (invocation.json()) {
    Json list = Json::array();
    for (const SessionInfo& info : sessions) list.push_back(ToJson(info));
    invocation.WriteJson(Json{{"sessions", std::move(list)}});
    return ExitCode::kOk;
  }
  invocation.Write(SessionTable(sessions, invocation.now_unix_s()).Render(invocation.style()));
  if (sessions.empty()) {
    invocation.Write(options.prefix.empty()
                         ? "no sessions\n"
                         : "no session begins with \"" + options.prefix + "\"\n");
  }
  return ExitCode::kOk;
}

void AddList(CommandLine& line) {
  CLI::App* command = line.Add("ls", "List sessions",
                               {"turnkeep ls", "turnkeep ls agent- --sort used --limit 20",
                                "turnkeep ls --json | jq '.sessions[].name'"});
  const auto options = std::make_shared<ListOptions>();
  command->add_option("prefix", options->prefix, "Only sessions whose names begin with this")
      ->type_name("PREFIX");
  command->add_option("--sort", options->sort, "name, tokens, bytes or used")
      ->check(CLI::IsMember({"name", "tokens", "bytes", "used"}))
      ->capture_default_str();
  command->add_option("--limit", options->limit, "At most so many (0: all)")->capture_default_str();
  command->add_flag("--names", options->names, "Only the names, one a line");
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) { return RunList(invocation, *options); };
  });
}

// ---- show ------------------------------------------------------------------------

std::string TiersOf(const SessionSpan& span) {
  std::string tiers = span.in_host && span.on_disk ? "host+disk"
                      : span.in_host               ? "host"
                      : span.on_disk               ? "disk"
                                                   : "none";
  // By report of an engine; no other can restore from there.
  return span.gpu_engines > 0 ? tiers + " (gpu)" : tiers;
}

// Whether `next` continues `run` so that one line can tell of both.
bool Continues(const SessionSpan& run, const SessionSpan& next) {
  const auto whole = [](const SessionSpan& span) {
    return span.first_in_chunk == 0 && span.token_count == span.chunk_token_count;
  };
  return whole(run) && whole(next) && run.chunk_token_count == next.chunk_token_count &&
         run.in_host == next.in_host && run.on_disk == next.on_disk &&
         run.gpu_engines == next.gpu_engines && run.session_count == next.session_count &&
         run.pin_count == next.pin_count && run.missing_reason == next.missing_reason &&
         next.stored_position - run.stored_position == next.token_begin - run.token_begin;
}

void AddSpanRow(const std::vector<SessionSpan>& spans, size_t begin, size_t end, Table* table) {
  const SessionSpan& first = spans[begin];
  uint64_t bytes = 0;
  for (size_t i = begin; i < end; ++i) bytes += spans[i].slot_bytes;
  const SessionSpan& last = spans[end - 1];
  const bool part = first.token_count != first.chunk_token_count;
  table->AddRow(
      {fmt::format("{}..{}", first.token_begin, last.token_begin + last.token_count),
       end - begin == 1 ? first.chunk.ShortHex() : HumanCount(end - begin) + " chunks",
       part ? fmt::format("{}..{} of {}", first.first_in_chunk,
                          first.first_in_chunk + first.token_count, first.chunk_token_count)
            : fmt::format("all {}", first.chunk_token_count),
       std::to_string(first.stored_position), TiersOf(first), HumanBytes(bytes),
       std::to_string(first.session_count),
       first.pin_count == 0 ? "" : std::to_string(first.pin_count), first.missing_reason});
}

std::string SpanTable(const std::vector<SessionSpan>& spans, bool every_chunk, const Style& style) {
  Table table({{"TOKENS"},
               {"CHUNK"},
               {"OF THE CHUNK"},
               {"POSITION", Align::kRight},
               {"TIERS"},
               {"SLOTS", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"PINS", Align::kRight},
               {"MISSING BECAUSE"}});
  for (size_t begin = 0; begin < spans.size();) {
    size_t end = begin + 1;
    while (!every_chunk && end < spans.size() && Continues(spans[end - 1], spans[end])) ++end;
    AddSpanRow(spans, begin, end, &table);
    begin = end;
  }
  return table.Render(style);
}

absl::StatusOr<ExitCode> RunShow(Invocation& invocation, const std::string& session,
                                 bool every_chunk) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  TK_ASSIGN_OR_RETURN(const SessionDetail detail, store->ShowSession(session));
  if (invocation.json()) {
    invocation.WriteJson(ToJson(detail));
    return ExitCode::kOk;
  }
  invocation.Write(SessionFields(detail.info, invocation.now_unix_s()).Render(invocation.style()));
  invocation.Write("\n");
  invocation.Write(SpanTable(detail.spans, every_chunk, invocation.style()));
  return ExitCode::kOk;
}

void AddShow(CommandLine& line) {
  CLI::App* command =
      line.Add("show", "One session: its chunks, their tiers and positions, and who shares them",
               {"turnkeep show alice", "turnkeep show alice --chunks"});
  const auto session = std::make_shared<std::string>();
  const auto every_chunk = std::make_shared<bool>(false);
  command->add_option("session", *session, "The session")->type_name("SESSION")->required();
  command->add_flag("--chunks", *every_chunk, "A line for every chunk, also where they are alike");
  command->callback([&line, session, every_chunk] {
    line.body = [session, every_chunk](Invocation& invocation) {
      return RunShow(invocation, *session, *every_chunk);
    };
  });
}

}  // namespace

void AddListCommands(CommandLine& line) {
  AddList(line);
  AddShow(line);
}

}  // namespace turnkeep
