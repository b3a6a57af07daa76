// turnkeep top: status, rates and the busiest sessions, again and again.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "core/status.h"
#include "human.h"
#include "sessions.h"

namespace turnkeep {
namespace {

struct TopOptions {
  double interval_s = 2;
  bool once = false;
  uint64_t count = 0;  // 0: until interrupted
  size_t rows = 15;
};

// One look at the store, and what changed since the one before.
struct Sample {
  StoreStatus status;
  std::vector<SessionInfo> sessions;
  Activity activity;
  int64_t ns = 0;
};

std::string KeyOf(const NamedCount& count) {
  return count.labels.empty() ? count.name : count.name + "{" + count.labels + "}";
}

// Counters that moved, per second, the largest first.
std::vector<std::pair<std::string, double>> RatesOf(const Sample& before, const Sample& now) {
  std::vector<std::pair<std::string, double>> rates;
  const double seconds = static_cast<double>(now.ns - before.ns) * 1e-9;
  if (seconds <= 0) return rates;
  std::map<std::string, double> old;
  for (const NamedCount& count : before.status.counts) old[KeyOf(count)] = count.value;
  for (const NamedCount& count : now.status.counts) {
    const auto found = old.find(KeyOf(count));
    if (!count.monotonic || found == old.end()) continue;
    // A counter that fell belongs to a daemon that was started again.
    const double change = count.value < found->second ? count.value : count.value - found->second;
    if (change > 0) rates.emplace_back(KeyOf(count), change / seconds);
  }
  std::stable_sort(rates.begin(), rates.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return rates;
}

// Those used last come first; of equal time those that changed since `before`.
std::vector<SessionInfo> Busiest(const Sample* before, const Sample& now, size_t count) {
  std::map<std::string, uint64_t> old;
  if (before != nullptr) {
    for (const SessionInfo& info : before->sessions) old[info.name] = info.generation;
  }
  const auto changed = [&](const SessionInfo& info) {
    const auto found = old.find(info.name);
    return before != nullptr && (found == old.end() || found->second != info.generation);
  };
  std::vector<SessionInfo> sessions = now.sessions;
  std::stable_sort(sessions.begin(), sessions.end(), [&](const auto& a, const auto& b) {
    return std::make_pair(a.last_used_unix_s, changed(a)) >
           std::make_pair(b.last_used_unix_s, changed(b));
  });
  if (sessions.size() > count) sessions.resize(count);
  return sessions;
}

std::string TierLine(const char* name, const TierStatus& tier) {
  if (tier.capacity_bytes == 0) return "";
  return fmt::format("{}  {} of {} ({}), {} chunks\n", name, HumanBytes(tier.used_bytes),
                     HumanBytes(tier.capacity_bytes),
                     HumanShare(tier.used_bytes, tier.capacity_bytes),
                     HumanCount(tier.chunk_count));
}

// The hinted queue, the windows, and what the placement decided since the last look.
void PrintActivity(const Activity& activity, Invocation& invocation) {
  invocation.Print(
      "prefetch  {} in flight and {} unused of a window of {}, {} chunks wait\n",
      HumanBytes(activity.prefetch_in_flight_bytes), HumanBytes(activity.prefetch_unused_bytes),
      HumanBytes(activity.fetch_window_bytes), HumanCount(activity.prefetch_waiting_chunks));
  invocation.Print("eviction window  {}\n", HumanBytes(activity.eviction_window_bytes));
  Table expected({{"EXPECTED"},
                  {"BY"},
                  {"DUE"},
                  {"HOST", Align::kRight},
                  {"DISK", Align::kRight},
                  {"COMING", Align::kRight}});
  for (const ExpectedUse& use : activity.expected) {
    expected.AddRow({use.target, use.queued ? "queue" : "hint",
                     use.queued || use.due_in_s <= 0 ? "next" : HumanSeconds(use.due_in_s),
                     HumanBytes(use.host_bytes), HumanBytes(use.disk_bytes),
                     HumanBytes(use.prefetching_bytes)});
  }
  if (!expected.empty()) {
    invocation.Print("\n{} expected\n", HumanCount(activity.expected_count));
    invocation.Write(expected.Render(invocation.style()));
  }
  Table events({{"WHEN"}, {"WHAT"}, {"CHUNK"}, {"SLOT", Align::kRight}, {"WHY"}});
  for (const ActivityEvent& event : activity.events) {
    events.AddRow({HumanAgo(event.unix_s, invocation.now_unix_s()), event.what, event.chunk,
                   HumanBytes(event.slot_bytes), event.why});
  }
  if (events.empty()) return;
  invocation.Write("\n");
  invocation.Write(events.Render(invocation.style()));
}

void PrintSample(const Sample* before, const Sample& now, const TopOptions& options,
                 Invocation& invocation) {
  const StoreStatus& status = now.status;
  invocation.Print("turnkeep {}  up {}  {} sessions  {} chunks  {} open tickets\n",
                   Printable(status.version), HumanSeconds(status.uptime_s),
                   HumanCount(status.session_count), HumanCount(status.chunk_count),
                   HumanCount(status.open_tickets));
  invocation.Write(TierLine("host", status.host));
  invocation.Write(TierLine("disk", status.disk));
  for (const std::string& warning : status.warnings) {
    invocation.Print("warning: {}\n", Printable(warning));
  }
  PrintActivity(now.activity, invocation);
  if (before != nullptr) {
    const auto rates = RatesOf(*before, now);
    Table table({{"COUNTER"}, {"PER SECOND", Align::kRight}});
    for (size_t i = 0; i < rates.size() && i < options.rows; ++i) {
      const bool bytes = rates[i].first.find("bytes") != std::string::npos;
      table.AddRow({rates[i].first, bytes ? HumanBytes(static_cast<uint64_t>(rates[i].second))
                                          : fmt::format("{:.1f}", rates[i].second)});
    }
    invocation.Write("\n");
    invocation.Write(table.empty() ? "no counter moved\n" : table.Render(invocation.style()));
  }
  const auto sessions = Busiest(before, now, options.rows);
  if (!sessions.empty()) invocation.Write("\n");
  invocation.Write(SessionTable(sessions, invocation.now_unix_s()).Render(invocation.style()));
}

void WriteJsonLine(const Sample* before, const Sample& now, const TopOptions& options,
                   Invocation& invocation) {
  Json rates = Json::object();
  if (before != nullptr) {
    for (const auto& [name, rate] : RatesOf(*before, now)) rates[name] = rate;
  }
  Json sessions = Json::array();
  for (const SessionInfo& info : Busiest(before, now, options.rows)) {
    sessions.push_back(ToJson(info));
  }
  // One line an object, so that a reader can follow.
  const Json json = {{"unix_s", invocation.now_unix_s()},
                     {"status", ToJson(now.status)},
                     {"rates_per_s", std::move(rates)},
                     {"busiest", std::move(sessions)},
                     {"activity", ToJson(now.activity)}};
  invocation.Write(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

absl::StatusOr<Sample> TakeSample(KvStore& store, const Sample* before, size_t rows,
                                  Invocation& invocation) {
  Sample sample;
  sample.ns = invocation.environment().clock->NowNs();
  TK_ASSIGN_OR_RETURN(sample.status, store.Status());
  TK_ASSIGN_OR_RETURN(sample.sessions, ListAll(store, ""));
  ActivityRequest request{.limit = static_cast<uint32_t>(rows)};
  if (before != nullptr) request.after = before->activity.last_event;
  TK_ASSIGN_OR_RETURN(sample.activity, store.GetActivity(request));
  // A daemon that was started again counts from one.
  if (sample.activity.last_event < request.after) {
    request.after = 0;
    TK_ASSIGN_OR_RETURN(sample.activity, store.GetActivity(request));
  }
  return sample;
}

absl::StatusOr<ExitCode> RunTop(Invocation& invocation, const TopOptions& options) {
  TK_ASSIGN_OR_RETURN(KvStore * store, invocation.store());
  const bool live = !options.once && !invocation.json() && invocation.environment().out_is_terminal;
  std::optional<Sample> before;
  for (uint64_t round = 0;; ++round) {
    auto now =
        TakeSample(*store, before.has_value() ? &*before : nullptr, options.rows, invocation);
    const bool away = now.status().code() == absl::StatusCode::kUnavailable;
    // A daemon that is being started again is waited for; the first answer must come.
    if (!now.ok() && !(away && round > 0)) return now.status();
    if (live) invocation.Write("\x1b[H\x1b[J");
    if (!live && round > 0 && !invocation.json()) invocation.Write("\n");
    if (!now.ok()) {
      if (!invocation.json()) invocation.Print("{}\n", Printable(MessageOf(now.status())));
    } else {
      const Sample* last = before.has_value() ? &*before : nullptr;
      if (invocation.json()) {
        WriteJsonLine(last, *now, options, invocation);
      } else {
        PrintSample(last, *now, options, invocation);
      }
      before = *std::move(now);
    }
    if (!invocation.Flush()) return ExitCode::kOk;
    if (options.once || round + 1 == options.count) return ExitCode::kOk;
    if (invocation.environment().sleep(absl::Seconds(options.interval_s))) return ExitCode::kOk;
  }
}

}  // namespace

void AddTopCommand(CommandLine& line) {
  CLI::App* command =
      line.Add("top", "A live view: tiers, what happens per second, the busiest sessions",
               {"turnkeep top", "turnkeep top --interval 0.5", "turnkeep top --once",
                "turnkeep top --json --count 10"});
  const auto options = std::make_shared<TopOptions>();
  command->add_option("--interval", options->interval_s, "Seconds between looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_option("--count", options->count, "Stop after so many looks (0: never)");
  command->add_option("--rows", options->rows, "Sessions and counters to show")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--once", options->once, "One look, then stop");
  command->callback([&line, options] {
    line.body = [options](Invocation& invocation) { return RunTop(invocation, *options); };
  });
}

}  // namespace turnkeep
