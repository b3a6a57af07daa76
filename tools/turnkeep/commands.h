// The commands, one group a file. Each Add function registers its subcommands; parsing
// one of them leaves its body in the command line, for RunCommandLine to run.
//
// A new group: declare Add…Commands here, define it in a file of its own, call it in
// command_line.cc, and list the file in CMakeLists.txt.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

#include "environment.h"
#include "invocation.h"

namespace turnkeep {

struct CommandLine {
  CLI::App app{"Looks at and works on the sessions that a turnkeepd keeps.", "turnkeep"};
  GlobalOptions global;
  CommandBody body;  // of the chosen command

  // A subcommand whose help ends with `examples`, one a line.
  CLI::App* Add(const std::string& name, const std::string& description,
                const std::vector<std::string>& examples);
  // Like `Add`, under a subcommand that only groups others.
  CLI::App* AddTo(CLI::App* group, const std::string& name, const std::string& description,
                  const std::vector<std::string>& examples);
};

void AddStatusCommand(CommandLine& line);    // status            command_status.cc
void AddTopCommand(CommandLine& line);       // top               command_top.cc
void AddListCommands(CommandLine& line);     // ls, show          commands_list.cc
void AddTreeCommand(CommandLine& line);      // tree              command_tree.cc
void AddExplainCommand(CommandLine& line);   // explain           command_explain.cc
void AddSessionCommands(CommandLine& line);  // drop … ttl        commands_session.cc
void AddHintCommand(CommandLine& line);      // hint              command_hint.cc
void AddVerifyCommand(CommandLine& line);    // verify            command_verify.cc
void AddFsckCommand(CommandLine& line);      // fsck              command_fsck.cc
void AddFileCommands(CommandLine& line);     // export, import    commands_file.cc
void AddBenchCommands(CommandLine& line);    // bench store       command_bench.cc
void AddBenchAttentionCommand(CommandLine& line, CLI::App* group);  // command_bench_attention.cc
void AddBenchGatherCommand(CommandLine& line, CLI::App* group);     // command_bench_gather.cc
void AddBenchPolicyCommand(CommandLine& line, CLI::App* group);     // command_bench_policy.cc
void AddReplayCommand(CommandLine& line);  // replay            command_replay.cc
void AddBenchOverlapCommand(CommandLine& line, CLI::App* group);  // command_bench_overlap.cc
void AddCompletionCommand(CommandLine& line);  // completion        command_completion.cc

// Registers everything above.
void AddAllCommands(CommandLine& line);

// Reads the arguments (without the program's name) and runs what they ask for. Returns
// the exit code; what went wrong has been written to the environment's streams.
int RunCommandLine(const std::vector<std::string>& arguments, Environment& environment);

}  // namespace turnkeep
