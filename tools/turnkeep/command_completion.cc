// turnkeep completion bash: a completion script made from the commands themselves.
#include <memory>
#include <string>
#include <vector>

#include "commands.h"

namespace turnkeep {
namespace {

std::string OptionWords(const CLI::App& app) {
  std::string words;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      words += (words.empty() ? "--" : " --") + name;
    }
  }
  return words;
}

// How the first positional argument is completed.
std::string ArgumentKind(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_positional()) continue;
    const std::string type = option->get_type_name();
    if (type == "SESSION" || type == "SRC" || type == "FROM" || type == "PREFIX") return "sessions";
    if (type == "DIR") return "directories";
    if (type == "FILE") return "files";
  }
  return "none";
}

std::string CaseOf(const CLI::App& command) {
  std::string groups;
  for (const CLI::App* inner : command.get_subcommands([](const CLI::App*) { return true; })) {
    groups += (groups.empty() ? "" : " ") + inner->get_name();
  }
  return fmt::format("    {}) options=\"{}\"; argument={}; words=\"{}\" ;;\n", command.get_name(),
                     OptionWords(command), ArgumentKind(command), groups);
}

constexpr const char* kScript =
    R"sh(# bash completion for turnkeep; made by `turnkeep completion bash`.
_turnkeep() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
  local command="" options="" argument=none words="" globals="{globals}" i
  local -a where=()
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${{COMP_WORDS[i]}} in
      --socket|--dir|--tcp) where+=("${{COMP_WORDS[i]}}" "${{COMP_WORDS[i+1]}}"); ((i++)) ;;
      --timeout) ((i++)) ;;
      -*) ;;
      *) command=${{COMP_WORDS[i]}}; break ;;
    esac
  done
  case $previous in
    --socket|--tokens|--layout) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
    --dir) mapfile -t COMPREPLY < <(compgen -d -- "$current"); return ;;
    --sort) mapfile -t COMPREPLY < <(compgen -W "name tokens bytes used" -- "$current"); return ;;
  esac
  case $command in
    "") words="{commands}" ;;
{cases}  esac
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options $globals" -- "$current")
  elif [[ -n $words ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  elif [[ $argument == sessions ]]; then
    # Names as they are typed: every special character quoted.
    local name
    while IFS= read -r name; do
      COMPREPLY+=("$(printf %q "$name")")
    done < <("${{COMP_WORDS[0]}}" "${{where[@]}}" --timeout 2s ls --names "$current" 2>/dev/null)
  elif [[ $argument == directories ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -d -- "$current")
  elif [[ $argument == files ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}}
complete -F _turnkeep turnkeep
)sh";

std::string BashCompletion(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands += (commands.empty() ? "" : " ") + command->get_name();
    cases += CaseOf(*command);
  }
  return fmt::format(fmt::runtime(kScript), fmt::arg("globals", OptionWords(app)),
                     fmt::arg("commands", commands), fmt::arg("cases", cases));
}

}  // namespace

void AddCompletionCommand(CommandLine& line) {
  CLI::App* command = line.Add("completion", "Print a completion script for a shell",
                               {"turnkeep completion bash > /etc/bash_completion.d/turnkeep",
                                "source <(turnkeep completion bash)"});
  command->require_subcommand(1);
  CLI::App* bash = line.AddTo(command, "bash", "For bash", {"source <(turnkeep completion bash)"});
  bash->callback([&line] {
    line.body = [&line](Invocation& invocation) -> absl::StatusOr<ExitCode> {
      invocation.Write(BashCompletion(line.app));
      return ExitCode::kOk;
    };
  });
}

}  // namespace turnkeep
