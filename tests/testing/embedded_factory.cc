#include "testing/embedded_factory.h"

#include <filesystem>
#include <string>
#include <utility>

#include "store/store.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {

namespace {

class EmbeddedSuiteStore : public SuiteStore {
 public:
  explicit EmbeddedSuiteStore(const SuiteStoreOptions& options) {
    StoreOptions store_options{.host_bytes = options.host_bytes, .clock = &clock_};
    if (options.disk_bytes > 0) {
      store_options.data_dir = directory_.path();
      store_options.disk_bytes = options.disk_bytes;
      store_options.extent_file_bytes = 4 * kMiB;
    }
    absl::StatusOr<std::unique_ptr<Store>> store = Store::Open(store_options);
    if (!store.ok()) ADD_FAILURE() << store.status();
    store_ = *std::move(store);
    kv_ = *store_->ForTenant("default");
  }

  KvStore& kv() override { return *kv_; }
  std::unique_ptr<KvStore> Tenant(const std::string& name) override {
    return *store_->ForTenant(name);
  }
  ManualClock* clock() override { return &clock_; }

 private:
  TemporaryDirectory directory_;
  ManualClock clock_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;
};

}  // namespace

std::unique_ptr<SuiteStore> MakeEmbeddedSuiteStore(const SuiteStoreOptions& options) {
  return std::make_unique<EmbeddedSuiteStore>(options);
}

}  // namespace turnkeep::testing
