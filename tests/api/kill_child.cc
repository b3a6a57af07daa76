// A client that is killed in the middle of its work; see client_death_test.cc.
//
//   kill_child SOCKET save|restore|fork|gpu SEED
//
// Writes one line when its ticket is open and works until it is killed. `fork` also leaves a child
// behind that has inherited the socket; its pid is in the line. `gpu` has no ticket, but says that
// it holds the chunks of the session "base" in a page pool.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>

#include "api/client.h"
#include "core/status.h"
#include "testing/kv_pattern.h"
#include "testing/layouts.h"

namespace turnkeep::testing {
namespace {

void SayReady(int pid) {
  std::printf("ready %d\n", pid);
  std::fflush(stdout);
}

[[noreturn]] void SaveForever(Client& client, uint64_t seed, bool fork_first) {
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(seed, 1000));
  auto save =
      BeginSaveOf(client, pattern, {.session = "s" + std::to_string(seed), .context = &context});
  if (!save.ok()) std::exit(3);
  int child = 0;
  if (fork_first) {
    child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
  }
  SayReady(child);
  for (;;) {
    if (!FillTicket(**save, pattern, context).ok()) std::exit(4);
  }
}

[[noreturn]] void RestoreForever(Client& client) {
  const KvPattern pattern(SmallLayout());
  KvContext context;
  context.Append(MakeTokens(1, 1000));
  auto restore = client.BeginRestore({.session = "base", .layout = pattern.fingerprint()});
  if (!restore.ok() || (*restore)->token_count() != context.size()) std::exit(5);
  SayReady(0);
  for (;;) {
    const auto outcome = CheckTicket(**restore, pattern, {.session = "base", .context = &context});
    if (!outcome.ok()) std::exit(6);
  }
}

[[noreturn]] void HoldForever(Client& client) {
  const auto detail = client.ShowSession("base");
  if (!detail.ok()) std::exit(7);
  std::vector<GpuChunk> chunks;
  for (const SessionSpan& span : detail->spans) chunks.push_back({span.chunk, 1000});
  // The second call is answered after the report was taken.
  if (!client.ReportGpuResidency(chunks).ok() || !client.StatSession("base").ok()) std::exit(8);
  SayReady(0);
  for (;;) ::pause();
}

int Main(int argc, char** argv) {
  if (argc != 4) return 2;
  // A failed test must not leave us behind.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto client = Client::Connect({.socket_path = argv[1], .client_name = "kill_child"});
  if (!client.ok() || !(*client)->RegisterLayout(SmallLayout()).ok()) return 3;
  const std::string mode = argv[2];
  if (mode == "restore") RestoreForever(**client);
  if (mode == "gpu") HoldForever(**client);
  SaveForever(**client, std::strtoull(argv[3], nullptr, 10), mode == "fork");
}

}  // namespace
}  // namespace turnkeep::testing

int main(int argc, char** argv) { return turnkeep::testing::Main(argc, argv); }
