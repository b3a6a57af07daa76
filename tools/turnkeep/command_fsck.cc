// turnkeep fsck: checks a data directory that no daemon has open.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "api/paths.h"
#include "commands.h"
#include "core/status.h"
#include "disk_tier/fsck.h"
#include "disk_tier/index_rebuild.h"
#include "human.h"
#include "progress.h"

namespace turnkeep {
namespace {

Json ToJson(const std::string& directory, const FsckReport& report) {
  Json damaged = Json::array();
  for (const FsckDamage& damage : report.damaged) {
    damaged.push_back(
        Json{{"chunk", damage.chunk.Hex()}, {"layers", damage.layers}, {"reason", damage.reason}});
  }
  return {{"directory", directory},
          {"clean", report.Clean()},
          {"chunks_ok", report.chunks_ok},
          {"chunks_damaged", report.chunks_damaged},
          {"chunks_out_of_range", report.chunks_out_of_range},
          {"chunks_doubly_used", report.chunks_doubly_used},
          {"chunks_unknown_layout", report.chunks_unknown_layout},
          {"orphan_slots", report.orphan_slots},
          {"damaged_file_headers", report.damaged_file_headers},
          {"damaged_records", report.damaged_records},
          {"sessions", report.sessions},
          {"incomplete_sessions", report.incomplete_sessions},
          {"files", report.files},
          {"bytes_read", report.bytes_read},
          {"removed_entries", report.removed_entries},
          {"damaged", std::move(damaged)},
          {"problems", report.problems}};
}

Json ToJson(const std::string& directory, const IndexRebuildReport& report) {
  return {{"directory", directory},
          {"clean", report.Clean()},
          {"kept_as", report.kept_as},
          {"repaired_after", report.repaired_after},
          {"tenants", report.tenants},
          {"layouts", report.layouts},
          {"chunks", report.chunks},
          {"chunks_found", report.chunks_found},
          {"chunks_left_out", report.chunks_left_out},
          {"sessions", report.sessions},
          {"sessions_cut", report.sessions_cut},
          {"sessions_lost", report.sessions_lost},
          {"missing_chunks", report.missing_chunks},
          {"damaged_records", report.damaged_records},
          {"lost_tables", report.lost_tables},
          {"problems", report.problems}};
}

// One damaged table can have a problem for every chunk.
constexpr size_t kMaxPrintedProblems = 20;

void PrintProblems(const std::vector<std::string>& problems, Invocation& invocation) {
  for (size_t i = 0; i < std::min(problems.size(), kMaxPrintedProblems); ++i)
    invocation.Print("{}\n", Printable(problems[i]));
  if (problems.size() > kMaxPrintedProblems) {
    invocation.Print("and {} more, which --json lists\n", problems.size() - kMaxPrintedProblems);
  }
}

void PrintReport(const std::string& directory, const IndexRebuildReport& report,
                 Invocation& invocation) {
  Fields fields;
  fields.Add("directory", directory);
  fields.Add("index", "built anew; as it was: " + report.kept_as);
  if (!report.repaired_after.empty()) fields.Add("why", Printable(report.repaired_after));
  fields.Add("salvaged", fmt::format("{} tenants, {} layouts, {} sessions, {} chunks, all verified",
                                     HumanCount(report.tenants), HumanCount(report.layouts),
                                     HumanCount(report.sessions), HumanCount(report.chunks)));
  const std::pair<const char*, uint64_t> findings[] = {
      {"chunks found by header", report.chunks_found}, {"chunks left out", report.chunks_left_out},
      {"sessions cut", report.sessions_cut},           {"sessions lost", report.sessions_lost},
      {"chunks missing", report.missing_chunks},       {"damaged records", report.damaged_records},
      {"tables lost", report.lost_tables.size()}};
  for (const auto& [name, count] : findings) {
    if (count > 0) fields.Add(name, HumanCount(count));
  }
  fields.Add("verdict", report.Clean() ? "nothing was damaged" : "salvaged");
  invocation.Write(fields.Render(invocation.style()));
  PrintProblems(report.problems, invocation);
}

void PrintReport(const std::string& directory, const FsckReport& report, bool repair,
                 Invocation& invocation) {
  Fields fields;
  fields.Add("directory", directory);
  fields.Add("read", fmt::format("{} in {} files", HumanBytes(report.bytes_read), report.files));
  fields.Add("sessions", fmt::format("{}, {} incomplete", HumanCount(report.sessions),
                                     HumanCount(report.incomplete_sessions)));
  fields.Add("chunks", HumanCount(report.chunks_ok) + " good");
  const std::pair<const char*, uint64_t> findings[] = {
      {"damaged chunks", report.chunks_damaged},
      {"chunks out of range", report.chunks_out_of_range},
      {"slots used twice", report.chunks_doubly_used},
      {"chunks of no layout", report.chunks_unknown_layout},
      {"damaged file headers", report.damaged_file_headers},
      {"damaged records", report.damaged_records},
      {"orphan slots (harmless)", report.orphan_slots}};
  for (const auto& [name, count] : findings) {
    if (count > 0) fields.Add(name, HumanCount(count));
  }
  if (repair) fields.Add("removed", HumanCount(report.removed_entries) + " index entries");
  fields.Add("verdict", report.Clean() ? "clean" : "damaged");
  invocation.Write(fields.Render(invocation.style()));
  Table damaged({{"CHUNK"}, {"LAYERS"}, {"REASON"}});
  for (const FsckDamage& damage : report.damaged) {
    damaged.AddRow(
        {damage.chunk.ShortHex(), fmt::format("{}", fmt::join(damage.layers, ",")), damage.reason});
  }
  if (!damaged.empty()) invocation.Write("\n");
  invocation.Write(damaged.Render(invocation.style()));
  PrintProblems(report.problems, invocation);
}

struct FsckArguments {
  std::string directory;
  std::string tenant;
  bool repair = false;
  bool rebuild_index = false;
};

absl::StatusOr<ExitCode> RunRebuild(Invocation& invocation, const std::string& directory) {
  absl::StatusOr<IndexRebuildReport> report;
  {
    Progress progress(invocation.environment(), "rebuild");
    IndexRebuildOptions options;
    options.progress = [&](uint64_t done, uint64_t total) { progress.Update(done, total); };
    report = RebuildIndex(directory, std::move(options));
  }
  TK_RETURN_IF_ERROR(report.status());
  if (invocation.json()) {
    invocation.WriteJson(ToJson(directory, *report));
  } else {
    PrintReport(directory, *report, invocation);
  }
  return report->Clean() ? ExitCode::kOk : ExitCode::kProblemFound;
}

absl::StatusOr<ExitCode> RunFsck(Invocation& invocation, const FsckArguments& arguments) {
  std::error_code error;
  std::string directory = arguments.directory;
  if (!std::filesystem::is_directory(directory, error)) {
    return InvalidArgument("fsck: DIR: \"{}\" is no directory", directory);
  }
  // The daemon's folder will do as well as the data directory in it.
  if (const std::string inner = DataDirIn(directory); std::filesystem::is_directory(inner, error)) {
    directory = inner;
  }
  if (arguments.rebuild_index) return RunRebuild(invocation, directory);
  absl::StatusOr<FsckReport> report;
  {
    Progress progress(invocation.environment(), "fsck");
    FsckOptions options{.repair = arguments.repair, .tenant = arguments.tenant};
    options.progress = [&](uint64_t done, uint64_t total) { progress.Update(done, total); };
    report = Fsck(directory, std::move(options));
  }
  TK_RETURN_IF_ERROR(report.status());
  if (invocation.json()) {
    invocation.WriteJson(ToJson(directory, *report));
  } else {
    PrintReport(directory, *report, arguments.repair, invocation);
  }
  return report->Clean() ? ExitCode::kOk : ExitCode::kProblemFound;
}

}  // namespace

void AddFsckCommand(CommandLine& line) {
  CLI::App* command =
      line.Add("fsck",
               "Check a data directory byte by byte while no daemon has it open.\n"
               "Exits with 1 when damage was found, repaired or not.",
               {"turnkeep fsck ~/.local/share/turnkeep", "turnkeep fsck /srv/tk/data --repair",
                "turnkeep fsck /srv/tk/data --rebuild-index"});
  const auto arguments = std::make_shared<FsckArguments>();
  command->add_option("directory", arguments->directory, "The daemon's folder or data directory")
      ->type_name("DIR")
      ->required();
  CLI::Option* tenant =
      command->add_option("--tenant", arguments->tenant, "Only this tenant's chunks")
          ->type_name("NAME");
  CLI::Option* repair = command->add_flag("--repair", arguments->repair,
                                          "Remove the index entries of what is damaged");
  command
      ->add_flag("--rebuild-index", arguments->rebuild_index,
                 "Salvage what can be read of an index that does not open (CURRENT, MANIFEST or "
                 "others damaged) into a new one, every chunk verified; the old one is kept")
      ->excludes(tenant)
      ->excludes(repair);
  command->callback([&line, arguments] {
    line.body = [arguments](Invocation& invocation) { return RunFsck(invocation, *arguments); };
  });
}

}  // namespace turnkeep
