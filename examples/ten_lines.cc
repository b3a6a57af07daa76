// The example of README.md: an engine's turn, which restores what is stored, computes the rest and
// saves the whole. The "engine" here writes a pattern as KV and recognises it again.
//
//   turnkeepd --dir /tmp/tk &     ten_lines /tmp/tk/turnkeep.sock
//
// Exit code 0 when the second turn got back, byte by byte, what the first one saved.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "api/client.h"
#include "core/status.h"

using namespace turnkeep;  // NOLINT: an example

namespace {

struct PatternEngine {
  KvLayout kv{.model = "ten-lines", .weights_revision = "1"};
  uint64_t wrong_pages = 0;

  PatternEngine() { kv.layers.assign(4, LayerSpec::Full(2, 64, DType::kFloat16)); }

  static std::byte Pattern(uint32_t layer, uint64_t chunk_begin) {
    return std::byte(layer * 31 + chunk_begin / kDefaultChunkTokens);
  }

  absl::Status Load(RestoreTicket& restore, uint32_t layer) {
    for (size_t i = 0; i < restore.spans().size(); ++i) {
      const RestoredSpan& span = restore.spans()[i];
      std::vector<std::byte> page(LayerPageBytes(kv.layers[layer], span.chunk_token_count));
      TK_RETURN_IF_ERROR(restore.ReadPage(i, layer, page));  // verified
      const std::vector<std::byte> want(page.size(), Pattern(layer, span.token_begin));
      wrong_pages += page != want;
    }
    return absl::OkStatus();
  }

  void Compute(uint64_t /*first_token*/) {}

  void Store(SaveTicket& save, uint32_t layer) {
    for (size_t i = 0; i < save.chunks().size(); ++i) {
      const std::span<std::byte> page = save.Page(i, layer);
      std::memset(page.data(), int(Pattern(layer, save.chunks()[i].token_begin)), page.size());
    }
  }
};

// Returns the number of tokens that need not be computed.
absl::StatusOr<uint64_t> Turn(KvStore& store, PatternEngine& engine, const std::string& session,
                              std::span<const uint32_t> context) {
  const uint32_t layers = uint32_t(engine.kv.layers.size());
  // README begins
  TK_ASSIGN_OR_RETURN(Fingerprint layout, store.RegisterLayout(engine.kv));
  TK_ASSIGN_OR_RETURN(auto restore, store.BeginRestore({session, {.tokens = context}, layout}));
  for (uint32_t layer = 0; layer < layers; ++layer) {  // each just before it is needed
    TK_RETURN_IF_ERROR(restore->WaitLayer(layer).status());
    TK_RETURN_IF_ERROR(engine.Load(*restore, layer));
  }
  engine.Compute(/*first_token=*/restore->token_count());  // 0 after a miss
  TK_ASSIGN_OR_RETURN(
      auto save, store.BeginSave({session, restore->generation(), layout, {.tokens = context}}));
  for (uint32_t layer = 0; layer < layers; ++layer) {  // each as soon as it is computed
    engine.Store(*save, layer);
    TK_RETURN_IF_ERROR(save->FinishLayer(layer));
  }
  TK_RETURN_IF_ERROR(save->Commit(absl::Seconds(5)).status());
  // README ends
  return restore->token_count();
}

absl::Status Run(const std::string& socket_path) {
  TK_ASSIGN_OR_RETURN(auto store, Client::Connect({.socket_path = socket_path}));
  store->DropSession("ten-lines").IgnoreError();  // of an earlier run
  PatternEngine engine;
  std::vector<uint32_t> context(192, 7);
  TK_ASSIGN_OR_RETURN(const uint64_t first, Turn(*store, engine, "ten-lines", context));
  context.resize(256, 11);
  TK_ASSIGN_OR_RETURN(const uint64_t second, Turn(*store, engine, "ten-lines", context));
  std::printf("turn 1: %" PRIu64 " of 192 tokens restored\n", first);
  std::printf("turn 2: %" PRIu64 " of 256 tokens restored, %" PRIu64 " pages wrong\n", second,
              engine.wrong_pages);
  TK_RETURN_IF_ERROR(store->DropSession("ten-lines"));
  if (first != 0 || second != 192 || engine.wrong_pages != 0) {
    return DataLoss("expected 0 and then 192 restored tokens, and no wrong page");
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: ten_lines SOCKET\n");
    return 2;
  }
  const absl::Status status = Run(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "ten_lines: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
