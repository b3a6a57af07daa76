// The embedded store as the durability and fault tests open it, again and again over one directory.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <absl/status/statusor.h>

#include "core/clock.h"
#include "core/kv_store.h"
#include "core/units.h"
#include "store/store.h"

namespace turnkeep::testing {

// Small enough that a test reaches every limit. `data_dir` may be empty: no disk tier.
inline StoreOptions SmallStoreOptions(const std::string& data_dir, Clock* clock) {
  StoreOptions options;
  options.data_dir = data_dir;
  options.host_bytes = 64 * kMiB;
  options.disk_bytes = 256 * kMiB;
  options.host_segment_bytes = kMiB;
  options.extent_file_bytes = 4 * kMiB;
  options.clock = clock;
  return options;
}

// A store and its interface for the tenant "default". Destroyed without Close, it is what a
// process leaves behind that ends unasked.
class OpenedStore {
 public:
  static absl::StatusOr<std::unique_ptr<OpenedStore>> Open(StoreOptions options) {
    auto store = Store::Open(std::move(options));
    if (!store.ok()) return store.status();
    auto kv = (*store)->ForTenant("default");
    if (!kv.ok()) return kv.status();
    return std::unique_ptr<OpenedStore>(new OpenedStore(*std::move(store), *std::move(kv)));
  }
  Store& store() { return *store_; }
  KvStore& kv() { return *kv_; }
  absl::Status Close() { return store_->Close(absl::Seconds(60)); }

 private:
  OpenedStore(std::unique_ptr<Store> store, std::unique_ptr<KvStore> kv)
      : store_(std::move(store)), kv_(std::move(kv)) {}

  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;  // goes before the store
};

}  // namespace turnkeep::testing
