// The JSON keys are a promise: docs/operations.md lists each, and nothing is printed that
// it does not list.
#include <fstream>
#include <set>
#include <sstream>

#include <gmock/gmock.h>

#include "command_fixture.h"

namespace turnkeep::testing {
namespace {

std::string CliSection() {
  std::ifstream file(std::string(TURNKEEP_DOCS) + "/operations.md");
  std::stringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  const size_t begin = all.find("\n## The turnkeep command\n");
  EXPECT_NE(begin, std::string::npos) << "docs/operations.md has no such section";
  const size_t end = all.find("\n## ", begin + 5);
  return all.substr(begin, end == std::string::npos ? end : end - begin);
}

void CollectKeys(const nlohmann::json& json, std::set<std::string>* keys) {
  for (const auto& [key, value] : json.items()) {
    if (json.is_object()) keys->insert(key);
    // Its keys are names of counters.
    if (value.is_structured() && key != "rates_per_s") CollectKeys(value, keys);
  }
}

class JsonKeys : public CommandFixture {
 protected:
  void SetUp() override {
    Save("alice", 40);
    store_.status.counts = {{"a", "", "", 1, true}};
    store_.status.histograms = {{"h", "", {1}, {1, 0}, 1}};
    store_.explanation.parts = {{}};
    store_.explanation.gpu = {{}};
    store_.activity.expected = {{}};
    store_.activity.events = {{.number = 1}};
    store_.tree = {{.layout = layout_}};
  }
};

TEST_F(JsonKeys, AreAllDocumented) {
  const std::string section = CliSection();
  const std::string file = ::testing::TempDir() + "/json_keys_test.tks";
  std::set<std::string> keys;
  const std::vector<std::vector<std::string>> commands = {{"status"},
                                                          {"ls"},
                                                          {"show", "alice"},
                                                          {"tree"},
                                                          {"explain", "alice"},
                                                          {"hint", "share", "alice"},
                                                          {"verify"},
                                                          {"top", "--once"},
                                                          {"truncate", "alice", "--drop", "0:4"},
                                                          {"fork", "alice", "bob"},
                                                          {"rename", "bob", "carol"},
                                                          {"pin", "alice"},
                                                          {"unpin", "alice"},
                                                          {"ttl", "alice", "1h"},
                                                          {"export", "alice", file, "--force"},
                                                          {"import", file, "--as", "dave"},
                                                          {"import", file, "--check"},
                                                          {"drop", "alice"}};
  for (auto command : commands) {
    command.push_back("--json");
    const Ran ran = Run(command);
    ASSERT_EQ(ran.code, 0) << command[0] << ": " << ran.err;
    CollectKeys(ran.json(), &keys);
  }
  std::remove(file.c_str());
  EXPECT_GT(keys.size(), 60u);
  for (const std::string& key : keys) {
    EXPECT_NE(section.find("`" + key + "`"), std::string::npos)
        << "docs/operations.md does not document the JSON key " << key;
  }
}

TEST_F(JsonKeys, EveryCommandAndExitCodeIsDocumented) {
  const std::string section = CliSection();
  CommandLine line;
  AddAllCommands(line);
  for (const CLI::App* command : line.app.get_subcommands([](const CLI::App*) { return true; })) {
    EXPECT_NE(section.find("| `" + command->get_name()), std::string::npos) << command->get_name();
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        if (name == "help") continue;
        EXPECT_NE(section.find("--" + name), std::string::npos)
            << command->get_name() << " --" << name;
      }
    }
  }
  for (int code = 0; code <= 6; ++code) {
    EXPECT_NE(section.find("\n| " + std::to_string(code) + " |"), std::string::npos) << code;
  }
}

}  // namespace
}  // namespace turnkeep::testing
