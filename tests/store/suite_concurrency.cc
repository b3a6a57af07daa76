// KvStoreSuite: many threads at once against a model in memory, every restored byte checked.
#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "store/kv_store_suite.h"

namespace turnkeep::testing {
namespace {

constexpr int kThreads = 4;
constexpr int kSessions = 12;
constexpr int kOperations = 250;  // a thread

// What a session has shown, and may show while a change of it is under way.
class SessionModel {
 public:
  struct Version {
    uint64_t generation = 0;                   // 0: under way
    std::shared_ptr<const KvContext> context;  // shared with the readers that compare against it
  };

  std::mutex writer;  // one change at a time, so that the model knows the order

  size_t Begin(KvContext context) {
    std::lock_guard lock(mutex_);
    versions_.push_back({0, std::make_shared<const KvContext>(std::move(context))});
    return versions_.size() - 1;
  }
  void Succeeded(size_t version, uint64_t generation) {
    std::lock_guard lock(mutex_);
    versions_[version].generation = generation;
    acknowledged_ = generation;
    exists_ = true;
  }
  void Failed(size_t version) {
    std::lock_guard lock(mutex_);
    versions_[version].context = nullptr;
  }
  void Dropped() {
    std::lock_guard lock(mutex_);
    exists_ = false;
    acknowledged_ = 0;
  }
  uint64_t acknowledged() const {
    std::lock_guard lock(mutex_);
    return acknowledged_;
  }
  bool exists() const {
    std::lock_guard lock(mutex_);
    return exists_;
  }
  // The last acknowledged context.
  KvContext Current() const {
    std::lock_guard lock(mutex_);
    for (auto it = versions_.rbegin(); it != versions_.rend(); ++it) {
      if (it->generation == acknowledged_ && it->context != nullptr) return *it->context;
    }
    return KvContext();
  }
  std::vector<std::shared_ptr<const KvContext>> Candidates() const {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<const KvContext>> candidates;
    for (auto it = versions_.rbegin(); it != versions_.rend(); ++it) {
      if (it->context != nullptr) candidates.push_back(it->context);
    }
    return candidates;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Version> versions_;
  uint64_t acknowledged_ = 0;
  bool exists_ = false;
};

class Worker {
 public:
  Worker(KvStore& kv, const KvPattern& pattern, std::array<SessionModel, kSessions>& models,
         uint64_t seed)
      : kv_(kv), pattern_(pattern), models_(models), random_(seed) {}

  void Run() {
    for (int i = 0; i < kOperations && !::testing::Test::HasFailure(); ++i) {
      const int session = static_cast<int>(random_() % kSessions);
      switch (random_() % 10) {
        case 0:
        case 1:
        case 2:
          Save(session);
          break;
        case 3:
          Truncate(session);
          break;
        case 4:
          Fork(session, static_cast<int>(random_() % kSessions));
          break;
        case 5:
          if (random_() % 3 == 0) Drop(session);
          break;
        case 6:
          Abandon(session);
          break;
        default:
          Restore(session);
          break;
      }
    }
  }

 private:
  static std::string Name(int session) { return "s" + std::to_string(session); }

  void Save(int session) {
    SessionModel& model = models_[session];
    std::lock_guard lock(model.writer);
    KvContext context;
    uint64_t generation = 0;
    if (model.exists()) {
      context = model.Current();
      generation = model.acknowledged();
      if (random_() % 4 == 0) context.Resize(random_() % (context.size() + 1));  // a rewind
    } else {
      context.Append(MakeTokens(random_() % 3, 48));  // one of three system prompts
    }
    if (context.size() > 400) context.Resize(100);
    context.Append(MakeTokens(random_() % 50, 1 + random_() % 60));
    const size_t version = model.Begin(context);
    const auto saved =
        SaveAll(kv_, pattern_,
                {.session = Name(session), .expected_generation = generation, .context = &context});
    if (!saved.ok()) {
      model.Failed(version);
      ADD_FAILURE() << "save of " << Name(session) << ": " << saved.status();
    } else if (saved->token_count != context.size()) {
      ADD_FAILURE() << Name(session) << ": " << saved->token_count << " tokens accepted";
    } else {
      model.Succeeded(version, saved->generation);
    }
  }

  void Truncate(int session) {
    SessionModel& model = models_[session];
    std::lock_guard lock(model.writer);
    if (!model.exists()) return;
    KvContext context = model.Current();
    if (context.size() < 2) return;
    const uint64_t begin = random_() % 2 == 0 ? 0 : random_() % (context.size() - 1);
    const uint64_t end = std::min(begin + 1 + random_() % (context.size() / 2), context.size());
    context.Drop(begin, end);
    const size_t version = model.Begin(context);
    const auto info = kv_.TruncateSession({.session = Name(session),
                                           .expected_generation = model.acknowledged(),
                                           .drop_begin = begin,
                                           .drop_end = end});
    if (!info.ok()) {
      model.Failed(version);
      ADD_FAILURE() << "truncation of " << Name(session) << ": " << info.status();
    } else {
      model.Succeeded(version, info->generation);
    }
  }

  void Fork(int from, int to) {
    if (from == to) return;
    std::scoped_lock lock(models_[from].writer, models_[to].writer);
    if (!models_[from].exists() || models_[to].exists()) return;
    const size_t version = models_[to].Begin(models_[from].Current());
    const auto info = kv_.ForkSession({.source = Name(from), .target = Name(to)});
    if (!info.ok()) {
      models_[to].Failed(version);
      ADD_FAILURE() << "fork of " << Name(from) << ": " << info.status();
    } else {
      models_[to].Succeeded(version, info->generation);
    }
  }

  void Drop(int session) {
    SessionModel& model = models_[session];
    std::lock_guard lock(model.writer);
    if (!model.exists()) return;
    model.Dropped();
    const absl::Status dropped = kv_.DropSession(Name(session));
    if (!dropped.ok()) ADD_FAILURE() << "drop of " << Name(session) << ": " << dropped;
  }

  // A save that is given up half-way, of a session that others change meanwhile.
  void Abandon(int session) {
    KvContext context;
    context.Append(MakeTokens(random_(), 100));
    auto ticket = BeginSaveOf(kv_, pattern_, {.session = "x" + Name(session), .context = &context});
    if (!ticket.ok()) {
      ADD_FAILURE() << ticket.status();
    } else if (random_() % 2 == 0) {
      (void)(*ticket)->FinishLayer(0);
    }
  }

  // By session alone, while others change it: some version of it must come back whole.
  void Restore(int session) {
    SessionModel& model = models_[session];
    auto before = model.Candidates();
    auto ticket = kv_.BeginRestore({.session = Name(session), .layout = pattern_.fingerprint()});
    if (!ticket.ok()) {
      ADD_FAILURE() << "restore of " << Name(session) << ": " << ticket.status();
      return;
    }
    if ((*ticket)->token_count() == 0) return;
    const auto after = model.Candidates();
    before.insert(before.begin(), after.begin(), after.end());
    absl::Status last = absl::InternalError("no version was ever saved");
    for (const auto& candidate : before) {
      const auto checked =
          CheckTicket(**ticket, pattern_, {.session = Name(session), .context = candidate.get()});
      if (checked.ok() && checked->token_count == candidate->size()) return;
      last = checked.status();
    }
    ADD_FAILURE() << Name(session) << " shows " << (*ticket)->token_count() << " tokens of none of "
                  << before.size() << " versions: " << last;
  }

  KvStore& kv_;
  const KvPattern& pattern_;
  std::array<SessionModel, kSessions>& models_;
  std::mt19937_64 random_;
};

TEST_P(KvStoreSuite, ManyThreadsAgreeWithAModel) {
  const KvPattern pattern = Register(TinyLayout());
  std::array<SessionModel, kSessions> models;
  const uint64_t seed = 97;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { Worker(kv(), pattern, models, seed + i).Run(); });
  }
  for (std::thread& thread : threads) thread.join();
  if (HasFailure()) return;
  uint64_t sessions = 0;
  for (int i = 0; i < kSessions; ++i) {
    if (!models[i].exists()) continue;
    ++sessions;
    const KvContext current = models[i].Current();
    EXPECT_EQ(RestoreWithoutPrompt(pattern, "s" + std::to_string(i), current), current.size());
  }
  EXPECT_TRUE(Eventually(
      [&](const StoreStatus& s) { return s.open_tickets == 0 && s.session_count == sessions; }));
  // With the last session the last chunk goes: nothing has leaked on the way.
  for (int i = 0; i < kSessions; ++i) {
    if (models[i].exists()) {
      EXPECT_TRUE(kv().DropSession("s" + std::to_string(i)).ok());
    }
  }
  EXPECT_TRUE(Eventually([](const StoreStatus& s) {
    return s.chunk_count == 0 && s.host.used_bytes == 0 && s.host.chunk_count == 0;
  }));
}

TEST_P(KvStoreSuite, WritersThatRaceForOneSessionLoseOrWinWhole) {
  const KvPattern pattern = Register(TinyLayout());
  std::atomic<int> won{0}, lost{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 40; ++i) {
        const auto info = kv().StatSession("s");
        const uint64_t generation = info.ok() ? info->generation : 0;
        // Its first token tells the content: whoever reads can rebuild the whole context.
        const KvContext context = ContextOf(1000 * t + i, 30 + i);
        const auto saved =
            SaveAll(kv(), pattern,
                    {.session = "s", .expected_generation = generation, .context = &context});
        if (saved.ok()) {
          ++won;
        } else if (absl::IsFailedPrecondition(saved.status())) {
          ++lost;
        } else {
          ADD_FAILURE() << saved.status();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto info = kv().StatSession("s");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(won + lost, kThreads * 40);
  EXPECT_EQ(info->generation, static_cast<uint64_t>(won)) << "a commit was lost or doubled";
  int matches = 0;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < 40; ++i) {
      const KvContext context = ContextOf(1000 * t + i, 30 + i);
      const auto restored = RestoreAndCheck(
          kv(), pattern, {.session = "s", .context = &context, .give_prompt = false});
      if (restored.ok() && restored->token_count == context.size()) ++matches;
    }
  }
  EXPECT_EQ(matches, 1);
}

}  // namespace
}  // namespace turnkeep::testing
