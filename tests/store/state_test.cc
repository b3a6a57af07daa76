// What the policies are told by the state itself.
#include "store/state.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace turnkeep {
namespace {

using ::testing::ElementsAre;

// Remembers whose turn each chunk was used by.
class TenantsSeen : public EvictionPolicy {
 public:
  explicit TenantsSeen(std::map<ChunkIndex, std::vector<uint32_t>>* seen) : seen_(seen) {}
  std::string_view name() const override { return "tenants_seen"; }
  void Insert(ChunkIndex, uint64_t, int64_t) override {}
  void Touch(ChunkIndex, int64_t) override {}
  void Remove(ChunkIndex) override {}
  void NoteTurn(ChunkIndex chunk, const TurnInfo& turn, int64_t) override {
    (*seen_)[chunk].push_back(turn.tenant);
  }
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>&, uint32_t) override {
    return kNoChunk;
  }

 private:
  std::map<ChunkIndex, std::vector<uint32_t>>* const seen_;
};

// Whoever tells of a turn need not say: chunks belong to one.
TEST(StoreState, ATurnIsOfTheTenantWhoseChunksItUses) {
  std::map<ChunkIndex, std::vector<uint32_t>> in_host, on_disk;
  StoreState state(
      {}, nullptr,
      Placement({.host_capacity_bytes = 1 << 20, .disk_capacity_bytes = 1 << 20},
                std::make_unique<TenantsSeen>(&in_host), std::make_unique<TenantsSeen>(&on_disk)));
  absl::MutexLock lock(&state.mu);
  const auto chunk_of = [&](uint16_t tenant, uint8_t number) {
    state.mu.AssertHeld();
    ChunkId id;
    id.bytes[0] = number;
    return state.catalog.FindOrCreate(id, kNoChunk, tenant, 0, 64);
  };
  const std::vector<ChunkIndex> sevens = {chunk_of(7, 2), chunk_of(7, 1)};
  const ChunkIndex threes = chunk_of(3, 3);
  state.NotifyTurn({.is_use = true, .running = true}, sevens, /*tail=*/false);
  state.NotifyTurn({}, sevens, /*tail=*/true);
  state.NotifyTurn({}, {&threes, 1}, /*tail=*/false);
  for (const auto* seen : {&in_host, &on_disk}) {
    EXPECT_THAT(seen->at(sevens[0]), ElementsAre(7, 7));
    EXPECT_THAT(seen->at(sevens[1]), ElementsAre(7, 7));
    EXPECT_THAT(seen->at(threes), ElementsAre(3));
  }
}

}  // namespace
}  // namespace turnkeep
