// The commands that change sessions: drop, truncate, fork, rename, pin, unpin, ttl.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/quantities.h"
#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "sessions.h"

namespace turnkeep {
namespace {

void WriteSession(const SessionInfo& info, Invocation& invocation) {
  if (invocation.json()) {
    invocation.WriteJson(ToJson(info));
  } else {
    invocation.Write(SessionTable({info}, invocation.now_unix_s()).Render(invocation.style()));
  }
}

using OneSession = std::function<absl::StatusOr<SessionInfo>(KvStore&, const std::string&)>;

// Runs `work` on every session, goes on after failures, and returns the first bad exit code.
absl::StatusOr<ExitCode> ForEach(Invocation& invocation, const std::vector<std::string>& names,
                                 const OneSession& work) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  ExitCode result = ExitCode::kOk;
  std::vector<SessionInfo> done;
  for (const std::string& name : names) {
    auto info = work(*store, name);
    if (info.ok()) {
      done.push_back(*std::move(info));
    } else if (const ExitCode code = invocation.Fail(info.status()); result == ExitCode::kOk) {
      result = code;
    }
  }
  if (invocation.json()) {
    Json list = Json::array();
    for (const SessionInfo& info : done) list.push_back(ToJson(info));
    invocation.WriteJson(Json{{"sessions", std::move(list)}});
  } else {
    invocation.Write(SessionTable(done, invocation.now_unix_s()).Render(invocation.style()));
  }
  return result;
}

void AddForEach(CommandLine& line, const std::string& name, const std::string& description,
                const std::vector<std::string>& examples, OneSession work) {
  CLI::App* command = line.Add(name, description, examples);
  const auto names = std::make_shared<std::vector<std::string>>();
  command->add_option("sessions", *names, "The sessions")->type_name("SESSION")->required();
  command->callback([&line, names, work = std::move(work)] {
    line.body = [names, work](Invocation& invocation) { return ForEach(invocation, *names, work); };
  });
}

// Drops and answers with the session as it was.
absl::StatusOr<SessionInfo> Drop(KvStore& store, const std::string& name) {
  TK_ASSIGN_OR_RETURN(SessionInfo info, store.StatSession(name));
  TK_RETURN_IF_ERROR(store.DropSession(name));
  return info;
}

// ---- truncate --------------------------------------------------------------------

struct TruncateOptions {
  std::string session;
  std::string drop;
  bool oldest_half = false;
  uint64_t keep_prefix = 0;
  uint64_t generation = 0;
};

absl::Status ParseRange(const std::string& text, uint64_t* begin, uint64_t* end) {
  const size_t colon = text.find(':');
  const auto parse = [](const std::string& digits, uint64_t* value) {
    if (digits.empty() || digits.size() > 18 ||
        digits.find_first_not_of("0123456789") != std::string::npos) {
      return false;
    }
    *value = std::stoull(digits);
    return true;
  };
  const bool good = colon != std::string::npos && parse(text.substr(0, colon), begin) &&
                    parse(text.substr(colon + 1), end) && *begin < *end;
  return good ? absl::OkStatus()
              : InvalidArgument(
                    "--drop: \"{}\" is no BEGIN:END with 0 <= BEGIN < END, as in 256:4096", text);
}

absl::StatusOr<ExitCode> RunTruncate(Invocation& invocation, const TruncateOptions& options) {
  TruncateRequest request{.session = options.session, .expected_generation = options.generation};
  if (options.oldest_half == !options.drop.empty()) {
    return InvalidArgument("truncate: either --drop BEGIN:END or --oldest-half is needed");
  }
  if (!options.oldest_half && options.keep_prefix > 0) {
    return InvalidArgument("--keep-prefix: {} goes with --oldest-half only", options.keep_prefix);
  }
  if (!options.drop.empty()) {
    TK_RETURN_IF_ERROR(ParseRange(options.drop, &request.drop_begin, &request.drop_end));
  }
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  if (options.oldest_half) {
    TK_ASSIGN_OR_RETURN(const SessionInfo info, store->StatSession(options.session));
    if (options.keep_prefix >= info.token_count || info.token_count - options.keep_prefix < 2) {
      return InvalidArgument("--keep-prefix: {} of the session's {} tokens leave no half to drop",
                             options.keep_prefix, info.token_count);
    }
    // Half of what is now, so not of what another writer makes of it meanwhile.
    if (request.expected_generation == 0) request.expected_generation = info.generation;
    request.drop_begin = options.keep_prefix;
    request.drop_end = options.keep_prefix + (info.token_count - options.keep_prefix) / 2;
  }
  TK_ASSIGN_OR_RETURN(const SessionInfo info, store->TruncateSession(request));
  WriteSession(info, invocation);
  return ExitCode::kOk;
}

void AddTruncate(CommandLine& line) {
  CLI::App* command = line.Add("truncate", "Drop a range of a session's tokens; moves no KV",
                               {"turnkeep truncate alice --oldest-half",
                                "turnkeep truncate alice --oldest-half --keep-prefix 256",
                                "turnkeep truncate alice --drop 256:4096 --generation 7"});
  const auto options = std::make_shared<TruncateOptions>();
  command->add_option("session", options->session, "The session")->type_name("SESSION")->required();
  command->add_option("--drop", options->drop, "Drop the tokens from BEGIN up to END")
      ->type_name("BEGIN:END");
  command->add_flag("--oldest-half", options->oldest_half, "Drop the older half of the tokens");
  command->add_option("--keep-prefix", options->keep_prefix,
                      "With --oldest-half: keep so many tokens at the front");
  command->add_option("--generation", options->generation,
                      "Refuse if the session has another generation");
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) { return RunTruncate(invocation, *options); };
  });
}

// ---- fork, rename, ttl -----------------------------------------------------------

void AddFork(CommandLine& line) {
  CLI::App* command =
      line.Add("fork", "A second session that shares the first one's chunks",
               {"turnkeep fork alice alice-2", "turnkeep fork alice what-if --tokens 4096"});
  const auto request = std::make_shared<ForkRequest>();
  const auto tokens = std::make_shared<uint64_t>(0);
  command->add_option("source", request->source, "The session")->type_name("SRC")->required();
  command->add_option("target", request->target, "The new one")->type_name("DST")->required();
  CLI::Option* given =
      command->add_option("--tokens", *tokens, "Only so many leading tokens (default: all)");
  command->callback([&line, request, tokens, given] {
    if (given->count() > 0) request->token_count = *tokens;
    line.body = [request](Invocation& invocation) -> absl::StatusOr<ExitCode> {
      TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
      TK_ASSIGN_OR_RETURN(const SessionInfo info, store->ForkSession(*request));
      WriteSession(info, invocation);
      return ExitCode::kOk;
    };
  });
}

void AddRename(CommandLine& line) {
  CLI::App* command =
      line.Add("rename", "Give a session another name", {"turnkeep rename alice bob"});
  const auto names = std::make_shared<std::pair<std::string, std::string>>();
  command->add_option("from", names->first, "The session")->type_name("FROM")->required();
  command->add_option("to", names->second, "Its new name")->type_name("TO")->required();
  command->callback([&line, names] {
    line.body = [names](Invocation& invocation) -> absl::StatusOr<ExitCode> {
      TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
      TK_ASSIGN_OR_RETURN(const SessionInfo info,
                          store->RenameSession(names->first, names->second));
      WriteSession(info, invocation);
      return ExitCode::kOk;
    };
  });
}

void AddTtl(CommandLine& line) {
  CLI::App* command = line.Add("ttl", "Drop a session some time after its last use",
                               {"turnkeep ttl alice 7d", "turnkeep ttl alice never"});
  const auto session = std::make_shared<std::string>();
  const auto duration = std::make_shared<std::string>();
  command->add_option("session", *session, "The session")->type_name("SESSION")->required();
  command->add_option("duration", *duration, "30s, 2m, 1h, 7d or never")
      ->type_name("DURATION")
      ->required();
  command->callback([&line, session, duration] {
    line.body = [session, duration](Invocation& invocation) -> absl::StatusOr<ExitCode> {
      const auto ttl = ParseDuration(*duration);
      if (!ttl.ok()) return InvalidArgument("ttl: DURATION: {}", MessageOf(ttl.status()));
      TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
      TK_ASSIGN_OR_RETURN(const SessionInfo info, store->SetSessionTtl(*session, *ttl));
      WriteSession(info, invocation);
      return ExitCode::kOk;
    };
  });
}

}  // namespace

void AddSessionCommands(CommandLine& line) {
  AddForEach(line, "drop", "Forget sessions; chunks that no other session shows are freed",
             {"turnkeep drop alice", "turnkeep drop alice bob carol"}, Drop);
  AddTruncate(line);
  AddFork(line);
  AddRename(line);
  AddForEach(line, "pin", "Keep the sessions' copies in the tiers they are in",
             {"turnkeep pin alice"},
             [](KvStore& store, const std::string& name) { return store.PinSession(name); });
  AddForEach(line, "unpin", "Let the sessions' copies move and be evicted again",
             {"turnkeep unpin alice"},
             [](KvStore& store, const std::string& name) { return store.UnpinSession(name); });
  AddTtl(line);
}

}  // namespace turnkeep
