// turnkeep explain: what a restore would find, and why it would not find the rest.
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "layout_argument.h"
#include "sessions.h"
#include "token_file.h"

namespace turnkeep {
namespace {

struct ExplainOptions {
  std::string session;
  std::string tokens_file;
  std::string layout;
};

void PrintExplanation(const Explanation& explanation, Invocation& invocation) {
  Fields fields;
  fields.Add("context", HumanCount(explanation.token_count) + " tokens");
  fields.Add("restored",
             fmt::format("{} tokens ({})", HumanCount(explanation.restorable_tokens),
                         HumanShare(explanation.restorable_tokens, explanation.token_count)));
  fields.Add("from host", HumanBytes(explanation.host_bytes));
  fields.Add("from disk", HumanBytes(explanation.disk_bytes));
  fields.Add("predicted", HumanSeconds(explanation.predicted_us * 1e-6));
  if (explanation.recompute_us > 0) {
    fields.Add("recompute", HumanSeconds(explanation.recompute_us * 1e-6));
  }
  if (explanation.declined_tokens > 0) {
    fields.Add("declined",
               HumanCount(explanation.declined_tokens) + " tokens: recompute is faster");
  }
  for (const GpuHolder& holder : explanation.gpu) {
    fields.Add("gpu", fmt::format("{} of {} tokens in engine \"{}\" (pid {}), for itself alone",
                                  HumanBytes(holder.bytes), HumanCount(holder.token_count),
                                  Printable(holder.engine), holder.pid));
  }
  invocation.Write(fields.Render(invocation.style()));
  Table parts({{"TOKENS"}, {"COUNT", Align::kRight}, {"FROM"}, {"MISSING BECAUSE"}});
  for (const ExplainPart& part : explanation.parts) {
    parts.AddRow({fmt::format("{}..{}", part.token_begin, part.token_begin + part.token_count),
                  HumanCount(part.token_count),
                  part.tier == Tier::kNone ? "miss" : std::string(NameOf(part.tier)), part.reason});
  }
  if (!parts.empty()) invocation.Write("\n");
  invocation.Write(parts.Render(invocation.style()));
  if (!explanation.notes.empty()) invocation.Write("\n");
  for (const std::string& note : explanation.notes) {
    invocation.Print("note: {}\n", Printable(note));
  }
}

absl::StatusOr<ExitCode> RunExplain(Invocation& invocation, const ExplainOptions& options) {
  if (options.session.empty() && options.tokens_file.empty()) {
    return InvalidArgument("explain: a SESSION or --tokens FILE is needed");
  }
  std::vector<uint32_t> tokens;
  if (!options.tokens_file.empty()) {
    TK_ASSIGN_OR_RETURN(tokens, ReadTokenFile(options.tokens_file));
  }
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  ExplainRequest request{.session = options.session, .prompt = {.tokens = tokens}};
  if (!options.layout.empty()) {
    TK_ASSIGN_OR_RETURN(request.layout, ResolveLayout(*store, options.layout));
  }
  TK_ASSIGN_OR_RETURN(const Explanation explanation, store->Explain(request));
  if (invocation.json()) {
    invocation.WriteJson(ToJson(explanation));
  } else {
    PrintExplanation(explanation, invocation);
  }
  return explanation.restorable_tokens < explanation.token_count ? ExitCode::kMiss : ExitCode::kOk;
}

}  // namespace

void AddExplainCommand(CommandLine& line) {
  CLI::App* command =
      line.Add("explain",
               "What would be restored, from where, in what time; and why the rest would not.\n"
               "Exits with 3 when part of the context would be a miss.",
               {"turnkeep explain alice", "turnkeep explain --tokens prompt.json",
                "turnkeep explain --tokens prompt.bin --layout layout.json",
                "turnkeep explain alice --tokens next-prompt.txt"});
  const auto options = std::make_shared<ExplainOptions>();
  command->add_option("session", options->session, "The session")->type_name("SESSION");
  command
      ->add_option("--tokens", options->tokens_file,
                   "Token ids: a JSON array, or parted by white space, or .bin with "
                   "little-endian 32-bit ids; - is standard input")
      ->type_name("FILE");
  command
      ->add_option("--layout", options->layout,
                   "The layout: its fingerprint or a JSON file (default: every layout is tried)")
      ->type_name("FP|FILE");
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) { return RunExplain(invocation, *options); };
  });
}

}  // namespace turnkeep
