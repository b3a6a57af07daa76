// turnkeep tree: the prefix tree, drawn.
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "human.h"

namespace turnkeep {
namespace {

constexpr size_t kNamesShown = 4;

std::string EndsText(const TreeNode& node) {
  if (node.ends_here.empty()) return "";
  std::string text = "  <- ";
  for (size_t i = 0; i < node.ends_here.size() && i < kNamesShown; ++i) {
    text += (i == 0 ? "" : ", ") + Printable(node.ends_here[i]);
  }
  if (node.ends_here.size() > kNamesShown) {
    text += fmt::format(" and {} more", node.ends_here.size() - kNamesShown);
  }
  return text;
}

std::string NodeText(const TreeNode& node) {
  std::string where;
  if (node.host_bytes > 0) where += ", host " + HumanBytes(node.host_bytes);
  if (node.disk_bytes > 0) where += ", disk " + HumanBytes(node.disk_bytes);
  if (where.empty()) where = ", not stored";
  return fmt::format("{}..{}  {} tokens in {} chunk{}{}, {} session{}{}", node.token_begin,
                     node.token_begin + node.token_count, HumanCount(node.token_count),
                     HumanCount(node.chunk_count), node.chunk_count == 1 ? "" : "s", where,
                     node.session_count, node.session_count == 1 ? "" : "s", EndsText(node));
}

// Whether a later node of `nodes` is a sibling of nodes[index].
bool HasNextSibling(const std::vector<TreeNode>& nodes, size_t index) {
  for (size_t i = index + 1; i < nodes.size() && nodes[i].depth >= nodes[index].depth; ++i) {
    if (nodes[i].depth == nodes[index].depth) return nodes[i].layout == nodes[index].layout;
  }
  return false;
}

// Draws `nodes`, which are in preorder. `more[d]`: the ancestor at depth d has a sibling below.
void DrawTree(KvStore& store, const std::vector<TreeNode>& nodes, Invocation& invocation) {
  std::vector<bool> more;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const TreeNode& node = nodes[i];
    if (node.depth == 0 && (i == 0 || nodes[i].layout != nodes[i - 1].layout)) {
      const auto layout = store.GetLayout(node.layout);
      invocation.Print("{}layout {}{}{}\n", invocation.style().bold, node.layout.ShortHex(),
                       layout.ok() ? "  " + Printable(layout->model) : "",
                       invocation.style().reset);
    }
    more.resize(node.depth);
    std::string lead;
    for (const bool below : more) lead += below ? "│  " : "   ";
    more.push_back(HasNextSibling(nodes, i));
    invocation.Print("{}{}{}\n", lead, more.back() ? "├─ " : "└─ ", NodeText(node));
  }
}

absl::StatusOr<ExitCode> RunTree(Invocation& invocation, uint32_t max_nodes) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  TK_ASSIGN_OR_RETURN(const std::vector<TreeNode> nodes, store->Tree({.max_nodes = max_nodes}));
  if (invocation.json()) {
    Json list = Json::array();
    for (const TreeNode& node : nodes) list.push_back(ToJson(node));
    invocation.WriteJson(Json{{"nodes", std::move(list)}});
    return ExitCode::kOk;
  }
  DrawTree(*store, nodes, invocation);
  if (nodes.empty()) invocation.Write("nothing is stored\n");
  if (nodes.size() == max_nodes) {
    invocation.Complain(
        fmt::format("the tree was cut at {} runs; --max-nodes shows more", max_nodes));
  }
  return ExitCode::kOk;
}

}  // namespace

void AddTreeCommand(CommandLine& line) {
  CLI::App* command = line.Add("tree", "The prefix tree: which sessions share what, and where",
                               {"turnkeep tree", "turnkeep tree --max-nodes 100 --json"});
  const auto max_nodes = std::make_shared<uint32_t>(1000);
  command->add_option("--max-nodes", *max_nodes, "At most so many runs of chunks")
      ->check(CLI::Range(1u, 1'000'000u))
      ->capture_default_str();
  command->callback([&line, max_nodes] {
    line.body = [max_nodes](Invocation& invocation) { return RunTree(invocation, *max_nodes); };
  });
}

}  // namespace turnkeep
