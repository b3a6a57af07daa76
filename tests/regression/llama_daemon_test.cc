// The engine with turnkeepd in a process of its own, killed while a turn runs and between
// turns: the engine's output stays that of a context computed from nothing.
#include <absl/time/clock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <random>

#include "api/client.h"
#include "core/status.h"
#include "llama/kv_bridge.h"
#include "regression/llama_testing.h"
#include "testing/eventually.h"
#include "testing/hooked_kv_store.h"
#include "testing/temporary_directory.h"

extern char** environ;

namespace turnkeep::llama {
namespace {

using testing::GoldenTokens;
using testing::LoadStories;
using testing::RandomModel;
using testing::RandomTokens;
using testing::TestSeed;
using turnkeep::testing::Eventually;
using turnkeep::testing::HookedKvStore;
using turnkeep::testing::TemporaryDirectory;

constexpr absl::Duration kPatience = absl::Seconds(20);

// turnkeepd with a directory of its own, and a client that stays through its deaths.
class Daemon {
 public:
  Daemon() {
    Start();
    auto client = Client::Connect({.socket_path = directory_.path() + "/turnkeep.sock",
                                   .max_backoff = absl::Milliseconds(50),
                                   .start_disconnected = true});
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = std::move(*client);
    EXPECT_TRUE(Eventually([&] { return client_->connected(); }, kPatience));
  }
  ~Daemon() { KillProcess(); }

  Client* client() { return client_.get(); }

  // Returns when the client has seen it.
  void Kill() {
    instance_ = client_->server_info().instance;
    KillProcess();
    EXPECT_TRUE(Eventually([&] { return !client_->connected(); }, kPatience));
  }
  // Returns when the client has found the new daemon.
  void Restart() {
    Start();
    EXPECT_TRUE(Eventually(
        [&] { return client_->connected() && client_->server_info().instance != instance_; },
        kPatience));
  }

 private:
  void Start() {
    const std::string log = directory_.path() + "/daemon.log";
    const char* argv[] = {TURNKEEP_DAEMON,
                          "--dir",
                          directory_.path().c_str(),
                          "--store.host_bytes=16MiB",
                          "--store.host_segment_bytes=1MiB",
                          "--store.disk_bytes=256MiB",
                          "--store.extent_file_bytes=8MiB",
                          "--store.durability=write",
                          "--log.file",
                          log.c_str(),
                          nullptr};
    ASSERT_EQ(
        ::posix_spawn(&pid_, TURNKEEP_DAEMON, nullptr, nullptr, const_cast<char**>(argv), environ),
        0);
  }
  void KillProcess() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  TemporaryDirectory directory_;
  pid_t pid_ = -1;
  uint64_t instance_ = 0;
  std::unique_ptr<Client> client_;
};

struct Turn {
  KvBridge::Report report;
  std::vector<std::vector<float>> logits;  // before each token of the answer, and after it
  absl::Status saved;
};

// A turn of a process that has nothing but the store.
Turn RunTurn(Engine* engine, KvStore* store, std::span<const uint32_t> context,
             std::span<const uint32_t> answer, KvDevice* device = nullptr) {
  Turn turn;
  const auto pages = std::move(*engine->NewCache({}));
  Sequence sequence(pages.get());
  KvBridge bridge(store, engine, {.session = "s", .chunk_tokens = 32, .device = device});
  std::vector<float> logits(engine->model().config().vocab);
  const auto report = bridge.Prefill(&sequence, context, logits);
  EXPECT_TRUE(report.ok()) << report.status();
  if (!report.ok()) return turn;
  turn.report = *report;
  turn.logits.push_back(logits);
  turn.saved = bridge.Finish();
  std::vector<uint32_t> all(context.begin(), context.end());
  for (const uint32_t token : answer) {
    EXPECT_TRUE(engine->Prefill(&sequence, {&token, 1}, all.size(), nullptr, logits).ok());
    all.push_back(token);
    turn.logits.push_back(logits);
  }
  bridge.Save(sequence, all);
  turn.saved.Update(bridge.Finish());
  return turn;
}

std::vector<float> Recompute(Engine* engine, std::span<const uint32_t> context) {
  const auto pages = std::move(*engine->NewCache({}));
  Sequence sequence(pages.get());
  std::vector<float> logits(engine->model().config().vocab);
  const absl::Status status = engine->Prefill(&sequence, context, 0, nullptr, logits);
  EXPECT_TRUE(status.ok()) << status;
  return logits;
}

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

enum class Moment { kRestore, kSave };

// The process ends before `layer` of the restore, when the engine has the layer before it
// behind itself; or before `layer` of the turn's first save, or before its commit when it
// has no such layer.
void KillAt(Moment moment, uint32_t layer, Daemon* daemon, HookedKvStore* store,
            std::atomic<int>* kills) {
  const auto kill = [=] {
    if (kills->fetch_add(1) == 0) daemon->Kill();
    return absl::OkStatus();
  };
  if (moment == Moment::kSave) {
    store->hooks.before_finish_layer = [=](uint32_t l) {
      return l == layer ? kill() : absl::OkStatus();
    };
    store->hooks.before_commit = kill;
    return;
  }
  // Begun after the pass has taken the restored tokens for granted.
  const auto begun = std::make_shared<std::atomic<uint32_t>>(0);
  const auto finished = std::make_shared<std::atomic<uint32_t>>(0);
  store->hooks.before_begin = [=] {
    ++*begun;
    return absl::OkStatus();
  };
  store->hooks.before_finish_layer = [=](uint32_t l) {
    *finished = l + 1;
    return absl::OkStatus();
  };
  store->hooks.before_wait_layer = [=](uint32_t l) {
    if (l != layer) return absl::OkStatus();
    EXPECT_TRUE(Eventually([&] { return *begun >= 2 && *finished >= layer; }, kPatience));
    return kill();
  };
}

class LlamaDaemon : public ::testing::TestWithParam<Moment> {};

TEST_P(LlamaDaemon, KilledBetweenLayersChangesNoLogitAndTheNextOneRestoresAgain) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("TURNKEEP_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto model = RandomModel("dim=64,layers=5,heads=8,kv_heads=4,vocab=400,context=600");
  const auto engine = std::move(*Engine::Create(model.get(), {.threads = 2}));
  const uint32_t layers = model->config().layers;
  const auto tokens = RandomTokens(&random, 400, 600);
  Daemon daemon;
  HookedKvStore store(daemon.client());
  size_t at = 60 + random() % 40;
  uint64_t tokens_with_answer = 0;
  const auto run_turn = [&] {
    const auto all = std::span<const uint32_t>(tokens);
    const size_t answer = 1 + random() % 8;
    const Turn turn = RunTurn(engine.get(), &store, all.first(at), all.subspan(at, answer));
    const std::vector<float> before = Recompute(engine.get(), all.first(at));
    const std::vector<float> after = Recompute(engine.get(), all.first(at + answer));
    EXPECT_TRUE(!turn.logits.empty() && SameBits(turn.logits.front(), before));
    EXPECT_TRUE(!turn.logits.empty() && SameBits(turn.logits.back(), after));
    tokens_with_answer = at + answer;
    at += answer + 1 + random() % 20;
    return turn;
  };
  EXPECT_TRUE(run_turn().saved.ok());
  for (uint32_t layer = 0; layer <= layers; ++layer) {
    if (GetParam() == Moment::kRestore && layer == layers) break;
    SCOPED_TRACE(fmt::format("killed at layer {}", layer));
    std::atomic<int> kills = 0;
    KillAt(GetParam(), layer, &daemon, &store, &kills);
    const uint64_t saved = tokens_with_answer;
    const Turn killed = run_turn();
    EXPECT_GE(kills, 1);
    if (GetParam() == Moment::kSave) {
      EXPECT_FALSE(killed.saved.ok());
    } else {
      // Layers that had arrived stay readable in mapped memory; otherwise all is computed.
      const KvBridge::Report& report = killed.report;
      const uint64_t restored = report.restored_host_tokens + report.restored_disk_tokens;
      EXPECT_EQ(restored, report.restarts == 0 ? saved : 0);
      EXPECT_LE(report.restarts, 1u);
    }
    store.hooks = {};
    daemon.Restart();
    const Turn next = run_turn();
    EXPECT_EQ(next.report.restored_disk_tokens, saved) << next.report.miss_reason;
    EXPECT_TRUE(next.saved.ok()) << next.saved;
  }
}

INSTANTIATE_TEST_SUITE_P(Moments, LlamaDaemon, ::testing::Values(Moment::kRestore, Moment::kSave),
                         [](const auto& info) {
                           return info.param == Moment::kRestore ? "restore" : "save";
                         });

TEST(LlamaDaemonPool, WhatIsHotOutlivesTheDaemon) {
  std::mt19937_64 random(5);
  const auto model = RandomModel("dim=64,layers=5,heads=8,kv_heads=4,vocab=400,context=600");
  const auto engine = std::move(*Engine::Create(model.get(), {.threads = 2}));
  const auto tokens = RandomTokens(&random, 400, 300);
  const auto all = std::span<const uint32_t>(tokens);
  KvDevice device({.pool_bytes = uint64_t{4} << 20});
  Daemon daemon;
  const auto turn = [&](size_t at) {
    const Turn done =
        RunTurn(engine.get(), daemon.client(), all.first(at), all.subspan(at, 4), &device);
    EXPECT_TRUE(!done.logits.empty() &&
                SameBits(done.logits.front(), Recompute(engine.get(), all.first(at))));
    return done;
  };
  EXPECT_TRUE(turn(100).saved.ok());
  EXPECT_EQ(turn(120).report.pooled_tokens, 104u);
  daemon.Kill();
  for (const size_t at : {size_t{150}, size_t{160}}) {
    EXPECT_EQ(turn(at).report.pooled_tokens, 124u);
  }
  daemon.Restart();
  EXPECT_EQ(turn(170).report.pooled_tokens, 124u);
  const Turn next = turn(180);
  EXPECT_EQ(next.report.pooled_tokens, 174u);
  EXPECT_TRUE(next.saved.ok()) << next.saved;
  const auto sessions = daemon.client()->ListSessions({});
  ASSERT_TRUE(sessions.ok() && sessions->size() == 1) << sessions.status();
  EXPECT_EQ((*sessions)[0].gpu_bytes, (*sessions)[0].kv_bytes);  // told to the new daemon
}

TEST(LlamaDaemonConversation, StoriesStaysGoldenThoughTheDaemonIsKilledAfterEveryTurn) {
  SKIP_WITHOUT_SHARED_MODEL("stories260K.bin");
  const uint64_t seed = TestSeed();
  SCOPED_TRACE("TURNKEEP_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto model = LoadStories();
  const auto engine = std::move(*Engine::Create(model.get(), {.threads = 2}));
  const std::vector<uint32_t> golden = GoldenTokens();
  const auto tokens = std::span(golden);
  Daemon daemon;
  uint64_t saved = 0, from_disk = 0;
  for (size_t at = 1; at < golden.size();) {
    const size_t answer = std::min<size_t>(20 + random() % 90, golden.size() - 1 - at);
    const Turn turn =
        RunTurn(engine.get(), daemon.client(), tokens.first(at), tokens.subspan(at, answer));
    ASSERT_EQ(turn.logits.size(), answer + 1);
    for (size_t i = 0; i <= answer; ++i) {
      ASSERT_EQ(Greedy(turn.logits[i]), golden[at + i]) << "index " << at + i;
    }
    EXPECT_TRUE(turn.saved.ok()) << turn.saved;
    EXPECT_EQ(turn.report.restored_disk_tokens, std::min(saved, at - 1)) << turn.report.miss_reason;
    from_disk += turn.report.restored_disk_tokens;
    saved = at + answer;
    at += answer + 1;
    daemon.Kill();
    daemon.Restart();
  }
  EXPECT_GT(from_disk, 0u);
}

}  // namespace
}  // namespace turnkeep::llama
