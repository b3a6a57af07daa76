// A store that a test holds back (odd_store.h), to be served at a socket.
#pragma once

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "api/odd_store.h"
#include "api/server.h"
#include "core/units.h"
#include "store/store.h"
#include "testing/kv_pattern.h"
#include "testing/standard_layouts.h"
#include "testing/temporary_directory.h"

namespace turnkeep::testing {

class OddStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store = Store::Open({.host_bytes = 64 * kMiB});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    odd_ = std::make_unique<OddStore>(*store_);
    auto kv = store_->ForTenant(kDefaultTenant);
    ASSERT_TRUE(kv.ok()) << kv.status();
    kv_ = *std::move(kv);
    ASSERT_TRUE(kv_->RegisterLayout(pattern_.layout()).ok());
  }
  void TearDown() override { odd_->LetGo(); }

  std::string socket() const { return directory_.path() + "/s"; }

  TemporaryDirectory directory_{"/tmp"};
  const KvPattern pattern_{BlockLayout()};
  std::unique_ptr<Store> store_;
  std::unique_ptr<KvStore> kv_;  // of the default tenant, past the server
  std::unique_ptr<OddStore> odd_;
  std::unique_ptr<Server> server_;
};

}  // namespace turnkeep::testing
