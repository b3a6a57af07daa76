// Opens an embedded store in argv[1], saves one chunk, and finds it again after a restart.
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/status.h"
#include "store/store.h"

using namespace turnkeep;  // NOLINT: an example

namespace {

absl::Status SaveOrRestore(const std::string& data_dir, bool save_first) {
  TK_ASSIGN_OR_RETURN(auto store, Store::Open({.data_dir = data_dir}));
  TK_ASSIGN_OR_RETURN(auto kv, store->ForTenant("default"));
  KvLayout layout{.model = "consumer", .weights_revision = "1"};
  layout.layers.assign(2, LayerSpec::Full(2, 64, DType::kFloat16));
  TK_ASSIGN_OR_RETURN(const Fingerprint fingerprint, kv->RegisterLayout(layout));
  const std::vector<uint32_t> context(64, 3);
  if (save_first) {
    TK_ASSIGN_OR_RETURN(auto save, kv->BeginSave({"s", 0, fingerprint, {.tokens = context}}));
    for (uint32_t layer = 0; layer < 2; ++layer) {
      std::memset(save->Page(0, layer).data(), 17, save->Page(0, layer).size());
      TK_RETURN_IF_ERROR(save->FinishLayer(layer));
    }
    TK_RETURN_IF_ERROR(save->Commit(absl::Seconds(5)).status());
  } else {
    TK_ASSIGN_OR_RETURN(auto restore, kv->BeginRestore({"s", {.tokens = context}, fingerprint}));
    TK_ASSIGN_OR_RETURN(const uint64_t tokens, restore->WaitLayer(1));
    if (tokens != context.size()) return DataLoss("{} tokens came back", tokens);
    std::vector<std::byte> page(LayerPageBytes(layout.layers[1], 64));
    TK_RETURN_IF_ERROR(restore->ReadPage(0, 1, page));
    if (page != std::vector<std::byte>(page.size(), std::byte{17})) return DataLoss("other bytes");
  }
  kv.reset();
  return store->Close(absl::Seconds(10));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  for (const bool save_first : {true, false}) {
    const absl::Status status = SaveOrRestore(argv[1], save_first);
    if (status.ok()) continue;
    std::fprintf(stderr, "embedded: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
