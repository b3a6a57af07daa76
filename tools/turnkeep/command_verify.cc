// turnkeep verify: reads and checks every byte while the daemon goes on serving.
#include <memory>
#include <string>

#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "progress.h"

namespace turnkeep {
namespace {

void PrintReport(const VerifyReport& report, bool repair, Invocation& invocation) {
  const uint64_t damaged = report.host_copies_damaged + report.disk_copies_damaged;
  Fields fields;
  fields.Add("checked", fmt::format("{} chunks, {}", HumanCount(report.chunks_checked),
                                    HumanBytes(report.bytes_checked)));
  fields.Add("damaged", damaged == 0 ? "none"
                                     : fmt::format("{} copies in host memory, {} on disk",
                                                   HumanCount(report.host_copies_damaged),
                                                   HumanCount(report.disk_copies_damaged)));
  if (repair) fields.Add("dropped", HumanCount(report.copies_dropped) + " copies");
  invocation.Write(fields.Render(invocation.style()));
  for (const std::string& problem : report.problems) {
    invocation.Print("{}damaged:{} {}\n", invocation.style().red, invocation.style().reset,
                     Printable(problem));
  }
  if (damaged > 0 && !repair) {
    invocation.Write("Damaged copies are never restored; --repair drops them.\n");
  }
}

absl::StatusOr<ExitCode> RunVerify(Invocation& invocation, const VerifyRequest& request) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  absl::StatusOr<VerifyReport> report;
  {
    Progress progress(invocation.environment(), "verify");
    report = store->Verify(request,
                           [&](uint64_t done, uint64_t total) { progress.Update(done, total); });
  }
  TK_RETURN_IF_ERROR(report.status());
  if (invocation.json()) {
    invocation.WriteJson(ToJson(*report));
  } else {
    PrintReport(*report, request.repair, invocation);
  }
  const bool clean = report->host_copies_damaged == 0 && report->disk_copies_damaged == 0 &&
                     report->problems.empty();
  return clean ? ExitCode::kOk : ExitCode::kProblemFound;
}

}  // namespace

void AddVerifyCommand(CommandLine& line) {
  CLI::App* command =
      line.Add("verify",
               "Read and check every byte of a session, or of all, while the daemon serves.\n"
               "Exits with 1 when damage was found, repaired or not.",
               {"turnkeep verify", "turnkeep verify alice", "turnkeep verify --repair"});
  const auto request = std::make_shared<VerifyRequest>();
  command->add_option("session", request->session, "Only this session (default: all)")
      ->type_name("SESSION");
  command->add_flag("--repair", request->repair, "Drop damaged copies, so that they are misses");
  command->callback([&line, request] {
    line.body = [request](Invocation& invocation) { return RunVerify(invocation, *request); };
  });
}

}  // namespace turnkeep
