// turnkeep hint: tells the store what will be used, from flags or from a JSON file.
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/quantities.h"
#include "commands.h"
#include "core/hint.h"
#include "core/status.h"
#include "json_output.h"
#include "layout_argument.h"
#include "table.h"
#include "token_file.h"

namespace turnkeep {
namespace {

constexpr const char* kActions = "share, prefetch, demote, pin, unpin, retain, expect or drop_soon";

struct HintOptions {
  std::string action;
  std::vector<std::string> sessions;
  std::vector<std::string> queue;
  std::vector<std::string> times;
  std::string stop;
  std::string ttl;
  int32_t priority = 1;
  std::string tokens_file;
  std::string layout;
  uint64_t max_tokens = kMaxSessionTokens;
  std::optional<double> prefill_speed;
  double half_speed_tokens = 0;
  double copy_speed = 0;
  std::string file;
};

absl::StatusOr<absl::Duration> DurationOf(const char* what, const std::string& text) {
  const auto duration = ParseDuration(text);
  if (!duration.ok()) return InvalidArgument("hint: {}: {}", what, MessageOf(duration.status()));
  return *duration;
}

// One time is the expected one, more are a distribution.
absl::StatusOr<HintItem> ItemOf(const HintOptions& options) {
  HintItem item;
  const auto action = HintActionOf(options.action);
  if (!action) {
    return InvalidArgument("hint: ACTION \"{}\" is none of {}", options.action, kActions);
  }
  item.action = *action;
  item.priority = options.priority;
  for (const std::string& text : options.times) {
    TK_ASSIGN_OR_RETURN(const absl::Duration time, DurationOf("--in", text));
    item.expected_times.push_back(time);
  }
  if (item.expected_times.size() == 1) {
    item.expected_in = item.expected_times[0];
    item.expected_times.clear();
  }
  if (!options.ttl.empty()) {
    TK_ASSIGN_OR_RETURN(item.ttl, DurationOf("--ttl", options.ttl));
  }
  if (!options.stop.empty()) {
    const auto stop = StopReasonOf(options.stop);
    if (!stop) {
      return InvalidArgument("hint: --stop \"{}\" is none of unknown, end_turn, tool_use, length",
                             options.stop);
    }
    item.stop = *stop;
  }
  return item;
}

// ---- the file --------------------------------------------------------------------

// The text of a member; numbers as they are written. Empty if there is none.
std::string TextOf(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return "";
  return it->is_string() ? it->get<std::string>() : it->dump();
}

absl::StatusOr<int64_t> NumberOf(const Json& object, const char* key, int64_t otherwise) {
  const auto it = object.find(key);
  if (it == object.end()) return otherwise;
  if (!it->is_number_integer() || it->get<int64_t>() > INT32_MAX ||
      it->get<int64_t>() < INT32_MIN) {
    return InvalidArgument("hint: \"{}\": {} is no integer of 32 bits", key, it->dump());
  }
  return it->get<int64_t>();
}

// "session", or "tokens" or "hashes" and "token_count", with "layout".
absl::StatusOr<HintTarget> TargetOf(const Json& json) {
  HintTarget target;
  if (json.is_string()) {
    target.session = json.get<std::string>();
    return target;
  }
  if (!json.is_object())
    return InvalidArgument("hint: {} is no session and no object", json.dump());
  target.session = TextOf(json, "session");
  TK_ASSIGN_OR_RETURN(const int64_t max_tokens,
                      NumberOf(json, "max_tokens", static_cast<int64_t>(kMaxSessionTokens)));
  target.max_tokens = static_cast<uint64_t>(std::max<int64_t>(max_tokens, 0));
  if (!target.session.empty()) return target;
  TK_ASSIGN_OR_RETURN(target.layout, Fingerprint::FromHex(TextOf(json, "layout")));
  if (const auto hashes = json.find("hashes"); hashes != json.end() && hashes->is_array()) {
    for (const Json& hash : *hashes) {
      if (!hash.is_string()) return InvalidArgument("hint: \"hashes\": {} is no text", hash.dump());
      target.block_hashes.push_back(hash.get<std::string>());
    }
    TK_ASSIGN_OR_RETURN(const int64_t count, NumberOf(json, "token_count", 0));
    target.hashed_token_count = static_cast<uint64_t>(std::max<int64_t>(count, 0));
    return target;
  }
  TK_ASSIGN_OR_RETURN(target.tokens, ParseTokens("hint: \"tokens\"", TextOf(json, "tokens"),
                                                 /*binary=*/false));
  return target;
}

absl::StatusOr<WaitingRequest> WaitingOf(const Json& json) {
  WaitingRequest waiting;
  TK_ASSIGN_OR_RETURN(waiting.target, TargetOf(json));
  if (!json.is_object()) return waiting;
  if (const std::string waited = TextOf(json, "waited"); !waited.empty()) {
    TK_ASSIGN_OR_RETURN(waiting.waited, DurationOf("\"waited\"", waited));
  }
  TK_ASSIGN_OR_RETURN(const int64_t priority, NumberOf(json, "priority", 0));
  waiting.priority = static_cast<int32_t>(priority);
  return waiting;
}

absl::StatusOr<HintItem> ItemOf(const Json& json) {
  if (!json.is_object()) return InvalidArgument("hint: item {} is no object", json.dump());
  HintOptions options{
      .action = TextOf(json, "action"), .stop = TextOf(json, "stop"), .ttl = TextOf(json, "ttl")};
  if (const auto in = json.find("in"); in != json.end() && in->is_array()) {
    for (const Json& time : *in) {
      options.times.push_back(time.is_string() ? time.get<std::string>() : time.dump());
    }
  } else if (in != json.end()) {
    options.times.push_back(TextOf(json, "in"));
  }
  TK_ASSIGN_OR_RETURN(const int64_t priority, NumberOf(json, "priority", 1));
  options.priority = static_cast<int32_t>(priority);
  TK_ASSIGN_OR_RETURN(HintItem item, ItemOf(options));
  TK_ASSIGN_OR_RETURN(item.target, TargetOf(json));
  return item;
}

absl::Status AddFromFile(const std::string& path, HintRequest* request) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return InvalidArgument("hint: --file \"{}\" cannot be opened", path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("hint: --file \"{}\" is no JSON object", path);
  if (const auto queue = json.find("queue"); queue != json.end()) {
    if (!queue->is_array()) return InvalidArgument("hint: \"queue\" is no array");
    request->queue.emplace();
    for (const Json& entry : *queue) {
      TK_ASSIGN_OR_RETURN(request->queue->emplace_back(), WaitingOf(entry));
    }
  }
  const auto items = json.find("items");
  if (items == json.end()) return absl::OkStatus();
  if (!items->is_array()) return InvalidArgument("hint: \"items\" is no array");
  for (const Json& entry : *items) {
    TK_ASSIGN_OR_RETURN(request->items.emplace_back(), ItemOf(entry));
  }
  return absl::OkStatus();
}

// ---- the command -----------------------------------------------------------------

absl::StatusOr<HintRequest> RequestOf(const HintOptions& options) {
  HintRequest request;
  if (!options.file.empty()) TK_RETURN_IF_ERROR(AddFromFile(options.file, &request));
  if (!options.queue.empty()) {
    request.queue.emplace();
    for (const std::string& session : options.queue) {
      request.queue->push_back({.target = {.session = session}});
    }
  }
  std::vector<HintTarget> targets;
  for (const std::string& session : options.sessions) targets.push_back({.session = session});
  if (!options.tokens_file.empty()) {
    TK_ASSIGN_OR_RETURN(targets.emplace_back().tokens, ReadTokenFile(options.tokens_file));
  }
  for (HintTarget& target : targets) {
    TK_ASSIGN_OR_RETURN(HintItem item, ItemOf(options));
    item.target = std::move(target);
    item.target.max_tokens = options.max_tokens;
    request.items.push_back(std::move(item));
  }
  if (options.prefill_speed.has_value()) {
    request.speeds.push_back({.prefill_tokens_per_s = *options.prefill_speed,
                              .prefill_half_speed_tokens = options.half_speed_tokens,
                              .copy_bytes_per_s = options.copy_speed});
  }
  if (!request.queue && request.items.empty() && request.speeds.empty()) {
    return InvalidArgument("hint: give an ACTION with a SESSION or --tokens, --queue, or --file");
  }
  return request;
}

std::string ShownTarget(const HintTarget& target) {
  return target.session.empty() ? fmt::format("{} tokens", target.prompt().token_count())
                                : target.session;
}

void Write(const HintRequest& request, const HintReply& reply, Invocation& invocation) {
  Json lines = Json::array();
  Table table({{"ACTION"}, {"TARGET"}, {"ANSWER"}, {"REASON"}});
  const auto add = [&](std::string_view action, const HintTarget& target,
                       const HintAnswer& answer) {
    lines.push_back({{"action", action},
                     {"target", ShownTarget(target)},
                     {"outcome", NameOf(answer.outcome)},
                     {"reason", answer.reason}});
    table.AddRow({std::string(action), ShownTarget(target), std::string(NameOf(answer.outcome)),
                  answer.reason});
  };
  for (size_t i = 0; i < reply.queue.size(); ++i) {
    add("queue", (*request.queue)[i].target, reply.queue[i]);
  }
  for (size_t i = 0; i < reply.items.size(); ++i) {
    add(NameOf(request.items[i].action), request.items[i].target, reply.items[i]);
  }
  for (const HintAnswer& answer : reply.speeds) add("speed", {.session = "engine"}, answer);
  if (invocation.json()) return invocation.WriteJson({{"answers", lines}});
  invocation.Write(table.empty() ? "the queue is empty now\n" : table.Render(invocation.style()));
}

void AddOptions(CLI::App* command, HintOptions* options) {
  command->add_option("action", options->action, kActions)->type_name("ACTION");
  command->add_option("session", options->sessions, "The sessions")->type_name("SESSION");
  command
      ->add_option("--tokens", options->tokens_file,
                   "A prefix in place of a session: token ids as for explain; needs --layout")
      ->type_name("FILE");
  command->add_option("--layout", options->layout, "Its layout: the fingerprint or a JSON file")
      ->type_name("FP|FILE");
  command->add_option("--max-tokens", options->max_tokens, "Leading tokens that are meant");
  command
      ->add_option("--queue", options->queue,
                   "A session of the waiting queue; once for each, in their order")
      ->type_name("SESSION");
  command
      ->add_option("--in", options->times,
                   "Time to the next use: 30s, 2m; several are a distribution, equally likely each")
      ->type_name("DURATION");
  command->add_option("--stop", options->stop, "How the turn ended: end_turn, tool_use, length")
      ->type_name("REASON");
  command->add_option("--ttl", options->ttl, "For retain: how long from now on")
      ->type_name("DURATION");
  command->add_option("--priority", options->priority,
                      "For retain: 1 to 3, the higher stays longer; 0 ends it");
  CLI::Option* const prefill_speed =
      command
          ->add_option("--prefill-speed", options->prefill_speed,
                       "Tokens a second that the engine prefills in --layout, at the start of a "
                       "context; 0: unknown. Restores that would take longer are declined")
          ->type_name("N");
  command
      ->add_option("--prefill-half-speed-tokens", options->half_speed_tokens,
                   "Context at which attention has halved that speed; 0: nowhere")
      ->needs(prefill_speed)
      ->type_name("N");
  command
      ->add_option("--copy-speed", options->copy_speed,
                   "Bytes a second that the engine takes out of host memory")
      ->type_name("N");
  command->add_option("--file", options->file, "Queue and items as JSON; see docs/policies.md")
      ->type_name("FILE");
}

}  // namespace

void AddHintCommand(CommandLine& line) {
  CLI::App* command = line.Add(
      "hint",
      "Tell what will be used, and when. Hints are advice: each is answered with\n"
      "accepted, clipped, deferred, rejected or missing, and none is an error.",
      {"turnkeep hint expect alice --stop tool_use", "turnkeep hint prefetch alice bob",
       "turnkeep hint expect alice --in 5s --in 9s --in 30s",
       "turnkeep hint retain alice --ttl 10m --priority 2", "turnkeep hint drop_soon carol",
       "turnkeep hint --layout layout.json --prefill-speed 12000 --prefill-half-speed-tokens 30000",
       "turnkeep hint --queue alice --queue bob", "turnkeep hint --file hints.json"});
  const auto options = std::make_shared<HintOptions>();
  AddOptions(command, options.get());
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) -> absl::StatusOr<ExitCode> {
      TK_ASSIGN_OR_RETURN(HintRequest request, RequestOf(*options));
      TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
      if (!options->tokens_file.empty()) {
        TK_ASSIGN_OR_RETURN(request.items.back().target.layout,
                            ResolveLayout(*store, options->layout));
      }
      if (!request.speeds.empty()) {
        TK_ASSIGN_OR_RETURN(request.speeds[0].layout, ResolveLayout(*store, options->layout));
      }
      Write(request, store->Hint(request), invocation);
      return ExitCode::kOk;
    };
  });
}

}  // namespace turnkeep
