#include "regression/fault_workload.h"

#include <set>

#include <absl/time/clock.h>

#include "core/status.h"
#include "testing/standard_layouts.h"

namespace turnkeep::testing {
namespace {

constexpr uint64_t kChunk = 64;

// Errors that the interface promises for a world that fails.
bool IsClear(const absl::Status& status) {
  return !absl::IsInternal(status) && !absl::IsUnknown(status) && !status.message().empty();
}

}  // namespace

StoreOptions FaultStoreOptions(const std::string& data_dir, Clock* clock) {
  StoreOptions options = SmallStoreOptions(data_dir, clock);
  options.host_bytes = kMiB;
  options.host_segment_bytes = 256 * kKiB;
  options.disk_bytes = 32 * kMiB;
  options.durability = Durability::kSync;
  return options;
}

FaultOracle::FaultOracle() : pattern_(BlockLayout()) {}

void FaultOracle::Run(KvStore& kv) {
  // A caller that meets an error tries once more.
  if (!kv.RegisterLayout(pattern_.layout()).ok() && !kv.RegisterLayout(pattern_.layout()).ok()) {
    return;
  }
  const KvContext system = ContextOf(1, 4 * kChunk);
  Save(kv, "a", Extended(system, 2, 40));
  Save(kv, "b", Extended(system, 3, 3 * kChunk));
  Save(kv, "a", Extended(Extended(system, 2, 40), 4, 2 * kChunk));
  Fork(kv, "b", "c");
  Save(kv, "d", ContextOf(5, 6 * kChunk));
  Restore(kv, "a");
  Truncate(kv, "b", 0, 3 * kChunk + 9);
  Save(kv, "b", Extended(Current("b"), 6, kChunk));
  Drop(kv, "d");
  Save(kv, "e", ContextOf(7, 8 * kChunk + 1));
  Save(kv, "d", ContextOf(8, 2 * kChunk));
  Restore(kv, "c");
  Restore(kv, "b");
  Restore(kv, "a");
}

KvContext FaultOracle::Current(const std::string& name) const {
  const auto it = sessions_.find(name);
  return it == sessions_.end() || it->second.may_show.empty() ? KvContext()
                                                              : it->second.may_show.back();
}

void FaultOracle::Succeeded(const std::string& name, KvContext context) {
  sessions_[name] = {
      .may_show = {std::move(context)}, .may_be_absent = false, .may_be_present = true};
}

void FaultOracle::Failed(const std::string& name, KvContext context) {
  Session& session = sessions_[name];
  session.may_be_present = true;
  // Last is what the workload goes on from.
  session.may_show.insert(session.may_show.begin(), std::move(context));
}

void FaultOracle::Save(KvStore& kv, const std::string& name, const KvContext& context) {
  const auto info = kv.StatSession(name);
  const auto saved = SaveAll(kv, pattern_,
                             {.session = name,
                              .expected_generation = info.ok() ? info->generation : 0,
                              .context = &context,
                              .space_deadline = absl::Milliseconds(200)});
  KvContext shown = context;
  if (saved.ok()) {
    shown.Resize(saved->token_count);
    // A commit that could not be made durable says so, and may be lost with the process.
    const std::vector<KvContext> before = sessions_[name].may_show;
    const bool was_absent = sessions_[name].may_be_absent;
    Succeeded(name, shown);
    if (saved->durable) return;
    if (saved->note.empty()) Problem("commit of " + name + " is not durable and does not say why");
    Session& session = sessions_[name];
    session.may_be_absent = was_absent;
    session.may_show.insert(session.may_show.begin(), before.begin(), before.end());
    return;
  }
  if (!IsClear(saved.status())) Problem("save of " + name + ": " + saved.status().ToString());
  Failed(name, shown);
}

void FaultOracle::Fork(KvStore& kv, const std::string& from, const std::string& to) {
  const auto info = kv.ForkSession({.source = from, .target = to});
  if (info.ok()) {
    const std::vector<KvContext> contexts = sessions_[from].may_show;
    Succeeded(to, Current(from));
    sessions_[to].may_show = contexts;
  } else {
    if (!IsClear(info.status())) Problem("fork to " + to + ": " + info.status().ToString());
    for (const KvContext& context : std::vector(sessions_[from].may_show)) Failed(to, context);
  }
}

void FaultOracle::Truncate(KvStore& kv, const std::string& name, uint64_t begin, uint64_t end) {
  const auto info = kv.TruncateSession({.session = name, .drop_begin = begin, .drop_end = end});
  KvContext context = Current(name);
  context.Drop(begin, end);
  if (info.ok()) {
    std::vector<KvContext> shown = sessions_[name].may_show;
    for (KvContext& each : shown) each.Drop(begin, end);
    Succeeded(name, context);
    sessions_[name].may_show = shown;
  } else {
    if (!IsClear(info.status())) Problem("truncate " + name + ": " + info.status().ToString());
    Failed(name, context);
  }
}

void FaultOracle::Drop(KvStore& kv, const std::string& name) {
  const absl::Status dropped = kv.DropSession(name);
  Session& session = sessions_[name];
  if (dropped.ok() || absl::IsNotFound(dropped)) {
    session = {};
  } else {
    if (!IsClear(dropped)) Problem("drop " + name + ": " + dropped.ToString());
    session.may_be_absent = true;
  }
}

void FaultOracle::Restore(KvStore& kv, const std::string& name) {
  const Session& session = sessions_[name];
  // Whether a session is there is judged by listing (Check); here only bytes are.
  std::string wrong = "the session was never saved";
  for (const KvContext& context : session.may_show) {
    const auto restored = RestoreAndCheck(kv, pattern_,
                                          {.session = name,
                                           .context = &context,
                                           .give_prompt = false,
                                           .deadline = absl::Seconds(10)});
    if (restored.ok()) return;
    if (!absl::IsInternal(restored.status())) {
      if (!IsClear(restored.status()))
        Problem("restore of " + name + ": " + restored.status().ToString());
      return;
    }
    wrong = restored.status().ToString();
  }
  if (!session.may_show.empty()) Problem("restore of " + name + ": " + wrong);
}

void FaultOracle::Check(KvStore& kv, bool reopened) {
  const auto listed = kv.ListSessions({});
  if (!listed.ok()) return Problem("list: " + listed.status().ToString());
  std::set<std::string> names;
  for (const SessionInfo& info : *listed) {
    names.insert(info.name);
    const auto known = sessions_.find(info.name);
    if (known == sessions_.end() || !known->second.may_be_present) {
      Problem("session " + info.name + " is visible and should not be");
      continue;
    }
    bool matches = false;
    for (const KvContext& context : known->second.may_show) {
      matches = matches || context.size() == info.token_count;
    }
    if (!matches) Problem(fmt::format("session {} shows {} tokens", info.name, info.token_count));
    Restore(kv, info.name);
  }
  for (const auto& [name, session] : sessions_) {
    if (session.may_be_present && !session.may_be_absent && !names.contains(name)) {
      Problem("session " + name + " is lost" + (reopened ? " after reopening" : ""));
    }
  }
}

void FaultOracle::CheckAccounts(KvStore& kv) {
  const auto listed = kv.ListSessions({});
  if (!listed.ok()) return Problem("list: " + listed.status().ToString());
  for (const SessionInfo& info : *listed) {
    const absl::Status dropped = kv.DropSession(info.name);
    if (!dropped.ok()) Problem("drop of " + info.name + ": " + dropped.ToString());
  }
  // Slots are freed behind the drop, once the index has it.
  for (int i = 0; i < 2000; ++i) {
    const auto status = kv.Status();
    if (!status.ok()) return Problem("status: " + status.status().ToString());
    if (status->chunk_count == 0 && status->host.used_bytes == 0 && status->disk.used_bytes == 0 &&
        status->open_tickets == 0) {
      return;
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
  const StoreStatus status = *kv.Status();
  Problem(fmt::format("with no session left: {} chunks, {} host bytes, {} disk bytes, {} tickets",
                      status.chunk_count, status.host.used_bytes, status.disk.used_bytes,
                      status.open_tickets));
}

}  // namespace turnkeep::testing
