// turnkeep status: the daemon and its tiers.
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "human.h"

namespace turnkeep {
namespace {

std::string NameWithLabels(const std::string& name, const std::string& labels) {
  return labels.empty() ? name : name + "{" + labels + "}";
}

void AddTierRow(const std::string& name, const TierStatus& tier, Table* table) {
  if (tier.capacity_bytes == 0 && tier.description.empty()) return;
  table->AddRow({name, HumanBytes(tier.used_bytes), HumanBytes(tier.reserved_bytes),
                 HumanBytes(tier.capacity_bytes), HumanShare(tier.used_bytes, tier.capacity_bytes),
                 HumanBytes(tier.pinned_bytes), HumanCount(tier.chunk_count), tier.description});
}

std::string CountText(double value) {
  return value >= 0 && value < 1e15 && value == static_cast<double>(static_cast<uint64_t>(value))
             ? HumanCount(static_cast<uint64_t>(value))
             : fmt::format("{:.3f}", value);
}

void PrintCounts(const StoreStatus& status, Invocation& invocation) {
  Table counts({{"COUNTER"}, {"VALUE", Align::kRight}, {"MEANING"}});
  for (const NamedCount& count : status.counts) {
    counts.AddRow({NameWithLabels(count.name, count.labels), CountText(count.value), count.help});
  }
  invocation.Write("\n");
  invocation.Write(counts.Render(invocation.style()));
  Table latencies({{"LATENCY"}, {"COUNT", Align::kRight}, {"MEAN", Align::kRight}, {"MEANING"}});
  for (const NamedHistogram& histogram : status.histograms) {
    uint64_t count = 0;
    for (const uint64_t bucket : histogram.counts) count += bucket;
    latencies.AddRow({histogram.name, HumanCount(count),
                      count == 0 ? "-" : HumanSeconds(histogram.sum / static_cast<double>(count)),
                      histogram.help});
  }
  if (latencies.empty()) return;
  invocation.Write("\n");
  invocation.Write(latencies.Render(invocation.style()));
}

absl::StatusOr<ExitCode> RunStatus(Invocation& invocation, bool counters) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  TK_ASSIGN_OR_RETURN(const StoreStatus status, store->Status());
  const Connection& connection = invocation.connection();
  if (invocation.json()) {
    Json json = ToJson(status);
    json["address"] = connection.address;
    json["tenant"] = connection.tenant;
    json["transport"] = connection.transport;
    invocation.WriteJson(json);
    return ExitCode::kOk;
  }
  Fields fields;
  fields.Add("version", status.version);
  if (!connection.address.empty()) {
    fields.Add("daemon", fmt::format("{}, tenant {}, {}", connection.address, connection.tenant,
                                     connection.transport));
  }
  fields.Add("uptime", HumanSeconds(status.uptime_s));
  fields.Add("durability", status.durability);
  fields.Add("policy", status.policy);
  fields.Add("sessions", HumanCount(status.session_count));
  fields.Add("chunks", HumanCount(status.chunk_count));
  fields.Add("open tickets", HumanCount(status.open_tickets));
  invocation.Write(fields.Render(invocation.style()));
  Table tiers({{"TIER"},
               {"USED", Align::kRight},
               {"RESERVED", Align::kRight},
               {"CAP", Align::kRight},
               {"FULL", Align::kRight},
               {"PINNED", Align::kRight},
               {"CHUNKS", Align::kRight},
               {"USING"}});
  AddTierRow("host", status.host, &tiers);
  AddTierRow("disk", status.disk, &tiers);
  if (!tiers.empty()) invocation.Write("\n");
  invocation.Write(tiers.Render(invocation.style()));
  if (!status.warnings.empty()) invocation.Write("\n");
  for (const std::string& warning : status.warnings) {
    invocation.Print("{}warning:{} {}\n", invocation.style().yellow, invocation.style().reset,
                     Printable(warning));
  }
  if (counters) PrintCounts(status, invocation);
  return ExitCode::kOk;
}

}  // namespace

void AddStatusCommand(CommandLine& line) {
  CLI::App* command =
      line.Add("status", "The daemon, its tiers and what an operator should know",
               {"turnkeep status", "turnkeep status --counters", "turnkeep status --json"});
  const auto counters = std::make_shared<bool>(false);
  command->add_flag("--counters", *counters, "Also print every counter and latency");
  command->callback([&line, counters] {
    line.body = [counters](Invocation& invocation) { return RunStatus(invocation, *counters); };
  });
}

}  // namespace turnkeep
