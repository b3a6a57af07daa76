#include <algorithm>
#include <utility>

#include "api/quantities.h"
#include "commands.h"
#include "core/status.h"
#include "human.h"

namespace turnkeep {
namespace {

constexpr const char* kExitCodes =
    "Exit codes: 0 fine, 1 damage found, 2 usage, 3 no such session or a miss,\n"
    "4 no daemon answers, 5 refused (generation, limit, permission, name taken), 6 internal.";

std::string ExamplesText(const std::vector<std::string>& examples) {
  std::string text = "Examples:\n";
  for (const std::string& example : examples) text += "  " + example + "\n";
  text += "\nEvery command also takes the options of `turnkeep --help`: --json, --dir, …";
  return text;
}

void AddGlobalOptions(CommandLine& line) {
  CLI::App& app = line.app;
  app.add_option("--socket", line.global.socket,
                 "The daemon's Unix socket (or $TURNKEEP_SOCKET; default: turnkeep.sock in --dir)")
      ->type_name("PATH");
  app.add_option("--dir", line.global.dir,
                 "The daemon's folder (or $TURNKEEP_DIR; default: ~/.local/share/turnkeep)")
      ->type_name("DIR");
  app.add_option("--tcp", line.global.tcp,
                 "The daemon's loopback address instead of a socket; the token is read from "
                 "$TURNKEEP_TOKEN")
      ->type_name("HOST:PORT");
  app.add_option("--timeout", line.global.timeout_text, "How long to wait for an answer")
      ->type_name("DURATION")
      ->capture_default_str();
  app.add_flag("--json", line.global.json, "Print JSON instead of tables");
  app.set_version_flag("--version", "turnkeep " TURNKEEP_VERSION, "Print the version");
}

// CLI11 takes "-5" for a count, as a very large one.
void RefuseNegativeCounts(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_type_name().find("UINT") == std::string::npos) continue;
    option->check(CLI::Validator(
        [](const std::string& text) {
          return text.starts_with("-") ? fmt::format("\"{}\" is below 0", text) : std::string();
        },
        ""));
  }
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    RefuseNegativeCounts(*command);
}

int RunBody(CommandLine& line, Environment& environment) {
  Invocation invocation(environment, line.global);
  const auto timeout = ParseDuration(line.global.timeout_text);
  if (!timeout.ok() || *timeout <= absl::ZeroDuration()) {
    return static_cast<int>(invocation.Fail(
        InvalidArgument("--timeout: \"{}\" is no duration above zero (try 10s or 500ms)",
                        line.global.timeout_text)));
  }
  line.global.timeout = *timeout;
  const absl::StatusOr<ExitCode> result = line.body(invocation);
  invocation.Flush();
  return static_cast<int>(result.ok() ? *result : invocation.Fail(result.status()));
}

// The innermost subcommand that the arguments named.
const CLI::App& Chosen(const CLI::App& app) {
  const CLI::App* chosen = &app;
  while (!chosen->get_subcommands().empty()) chosen = chosen->get_subcommands().front();
  return *chosen;
}

// "turnkeep completion bash", for usage lines.
std::string FullName(const CLI::App& command) {
  return command.get_parent() == nullptr
             ? command.get_name()
             : FullName(*command.get_parent()) + " " + command.get_name();
}

// What is wrong with the arguments; CLI11 does not name a command that does not exist.
std::string UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& chosen = Chosen(app);
  const std::vector<std::string> rest = app.remaining(true);
  const bool wants_command = !chosen.get_subcommands([](const CLI::App*) { return true; }).empty();
  const std::string what =
      wants_command && !rest.empty()
          ? fmt::format("\"{}\" is no command of {}", rest.front(), FullName(chosen))
          : std::string(error.what());
  return fmt::format("turnkeep: {}\nTry: {} --help\n", Printable(what), FullName(chosen));
}

}  // namespace

CLI::App* CommandLine::AddTo(CLI::App* group, const std::string& name,
                             const std::string& description,
                             const std::vector<std::string>& examples) {
  CLI::App* command = group->add_subcommand(name, description);
  command->footer(ExamplesText(examples));
  command->fallthrough();
  return command;
}

CLI::App* CommandLine::Add(const std::string& name, const std::string& description,
                           const std::vector<std::string>& examples) {
  return AddTo(&app, name, description, examples);
}

void AddAllCommands(CommandLine& line) {
  AddGlobalOptions(line);
  line.app.require_subcommand(1);
  line.app.footer(std::string("Examples:\n"
                              "  turnkeep status\n"
                              "  turnkeep ls\n"
                              "  turnkeep explain alice\n"
                              "  turnkeep truncate alice --oldest-half --keep-prefix 256\n\n"
                              "`turnkeep COMMAND --help` shows a command's options.\n") +
                  kExitCodes);
  AddStatusCommand(line);
  AddListCommands(line);
  AddTreeCommand(line);
  AddExplainCommand(line);
  AddTopCommand(line);
  AddHintCommand(line);
  AddSessionCommands(line);
  AddVerifyCommand(line);
  AddFsckCommand(line);
  AddFileCommands(line);
  AddBenchCommands(line);
  AddReplayCommand(line);
  AddCompletionCommand(line);
  RefuseNegativeCounts(line.app);
}

int RunCommandLine(const std::vector<std::string>& arguments, Environment& environment) {
  CommandLine line;
  AddAllCommands(line);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
  try {
    line.app.parse(std::move(reversed));
  } catch (const CLI::CallForVersion& version) {
    environment.write_out(std::string(version.what()) + "\n");
    return static_cast<int>(ExitCode::kOk);
  } catch (const CLI::CallForHelp&) {
    const CLI::App& chosen = Chosen(line.app);
    // help() appends the command's own name.
    const CLI::App* parent = chosen.get_parent();
    environment.write_out(chosen.help(parent == nullptr ? "" : FullName(*parent)));
    return static_cast<int>(ExitCode::kOk);
  } catch (const CLI::ParseError& error) {
    environment.write_err(UsageError(line.app, error));
    return static_cast<int>(ExitCode::kUsage);
  }
  return RunBody(line, environment);
}

}  // namespace turnkeep
