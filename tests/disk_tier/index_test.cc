#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <absl/synchronization/notification.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "disk_tier/collecting_visitor.h"
#include "disk_tier/rocks_index.h"
#include "disk_tier/testing/fault_index.h"
#include "testing/temporary_directory.h"

namespace turnkeep {
namespace {

using testing::CollectingVisitor;
using testing::TemporaryDirectory;
using testing::TestChunk;

class IndexTest : public ::testing::Test {
 protected:
  std::unique_ptr<Index> Open(RocksIndexOptions options = {}) {
    options.directory = directory_.path() + "/index";
    auto index = RocksIndex::Open(options);
    EXPECT_TRUE(index.ok()) << index.status();
    return index.ok() ? std::move(*index) : nullptr;
  }
  CollectingVisitor Loaded(Index& index) {
    CollectingVisitor visitor;
    auto meta = index.Load(visitor);
    EXPECT_TRUE(meta.ok()) << meta.status();
    if (meta.ok()) visitor.meta = *meta;
    return visitor;
  }
  std::vector<std::string> FilesOfIndex(const std::string& suffix) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path() + "/index")) {
      if (entry.path().string().ends_with(suffix)) names.push_back(entry.path().string());
    }
    return names;
  }

  TemporaryDirectory directory_;
};

SessionRecord SomeSession(uint64_t number, uint32_t span_blocks) {
  return {.number = number,
          .name = "s" + std::to_string(number),
          .token_count = 1,
          .span_blocks = span_blocks,
          .tenant = 1,
          .layout = 1};
}
SpanBlock SomeBlock(uint64_t session, uint32_t block_index) {
  return {.session = session,
          .block_index = block_index,
          .slices = {{TestChunk(session + block_index).id, 0, 64}}};
}

TEST_F(IndexTest, EverythingPutIsThereAfterReopening) {
  auto index = Open({.store_id = {42}});
  IndexBatch batch;
  for (uint64_t i = 1; i <= 100; ++i) batch.PutChunk(TestChunk(i));
  batch.PutTenant({.number = 1, .name = "alice", .key = {9}});
  batch.PutLayout({.number = 1, .encoding = "encoded"});
  batch.PutSession(SomeSession(5, 2));
  batch.PutSpanBlock(SomeBlock(5, 0));
  batch.PutSpanBlock(SomeBlock(5, 1));
  batch.SetNextEpoch(500);
  batch.SetNextSession(6);
  ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kSync).ok());
  index.reset();
  index = Open({.store_id = {42}});
  CollectingVisitor seen = Loaded(*index);
  ASSERT_EQ(seen.chunks.size(), 100u);
  for (uint64_t i = 1; i <= 100; ++i) EXPECT_EQ(seen.chunks.at(TestChunk(i).id), TestChunk(i));
  ASSERT_EQ(seen.sessions.size(), 1u);
  EXPECT_EQ(seen.sessions[0], SomeSession(5, 2));
  ASSERT_EQ(seen.blocks.size(), 2u);
  EXPECT_EQ(seen.blocks[1], SomeBlock(5, 1));
  EXPECT_EQ(seen.tenants.at(0).key, TenantKey{9});
  EXPECT_EQ(seen.layouts.at(0).encoding, "encoded");
  EXPECT_EQ(seen.meta.next_epoch, 500u);
  EXPECT_EQ(seen.meta.next_session, 6u);
  EXPECT_EQ(seen.meta.store_id, StoreId{42});
  EXPECT_EQ(seen.meta.damaged_records, 0u);
}

TEST_F(IndexTest, DeletedRecordsAreGone) {
  auto index = Open();
  IndexBatch batch;
  batch.PutChunk(TestChunk(1));
  batch.PutChunk(TestChunk(2));
  for (uint32_t b = 0; b < 5; ++b) batch.PutSpanBlock(SomeBlock(7, b));
  batch.PutSession(SomeSession(7, 5));
  batch.PutSession(SomeSession(8, 1));
  batch.PutSpanBlock(SomeBlock(8, 0));
  ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kNoSync).ok());
  IndexBatch second;
  second.DeleteChunk(TestChunk(1).id);
  second.DeleteSpanBlocks(7, 2, 5);
  second.DeleteSession(8, 1);
  ASSERT_TRUE(ApplyBlocking(*index, std::move(second), SyncMode::kNoSync).ok());
  CollectingVisitor seen = Loaded(*index);
  EXPECT_EQ(seen.chunks.size(), 1u);
  EXPECT_EQ(seen.blocks.size(), 2u);
  ASSERT_EQ(seen.sessions.size(), 1u);
  EXPECT_EQ(seen.sessions[0].number, 7u);
}

TEST_F(IndexTest, CountersNeverFallBehindTheRecords) {
  auto index = Open();
  ChunkRecord chunk = TestChunk(1);
  chunk.epoch = 1000;
  chunk.extent.file = 44;
  IndexBatch batch;
  batch.PutChunk(chunk);
  batch.PutSession(SomeSession(90, 0));
  batch.SetNextEpoch(3);
  ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kNoSync).ok());
  IndexBatch deletion;
  deletion.DeleteChunk(chunk.id);
  CollectingVisitor seen = Loaded(*index);
  EXPECT_EQ(seen.meta.next_epoch, 1001u);
  EXPECT_EQ(seen.meta.next_session, 91u);
  ASSERT_TRUE(ApplyBlocking(*index, std::move(deletion), SyncMode::kNoSync).ok());
  index.reset();
  index = Open();
  EXPECT_EQ(index->NextFile(), 45u) << "a file number is not given again when its chunks are gone";
}

TEST_F(IndexTest, BatchesThatWaitTogetherBecomeOneWriteAndOneSync) {
  auto index = Open();
  absl::Notification blocked, go, finished;
  ASSERT_TRUE(
      index
          ->Apply(IndexBatch(), SyncMode::kNoSync,
                  [&](const absl::Status&) {
                    blocked.Notify();
                    go.WaitForNotification();  // holds the index's thread while the others gather
                  })
          .ok());
  blocked.WaitForNotification();
  IndexStats before = index->Stats();
  std::vector<int> order;
  constexpr int kBatches = 500;
  for (int i = 0; i < kBatches; ++i) {
    IndexBatch batch;
    batch.PutChunk(TestChunk(static_cast<uint64_t>(i + 1)));
    ASSERT_TRUE(index
                    ->Apply(std::move(batch), i % 7 == 0 ? SyncMode::kSync : SyncMode::kNoSync,
                            [&, i](const absl::Status& status) {
                              EXPECT_TRUE(status.ok()) << status;
                              order.push_back(i);
                              if (i == kBatches - 1) finished.Notify();
                            })
                    .ok());
  }
  EXPECT_EQ(index->Stats().queued_batches, uint32_t{kBatches});
  go.Notify();
  finished.WaitForNotification();
  IndexStats after = index->Stats();
  EXPECT_EQ(after.batches - before.batches, uint64_t{kBatches});
  EXPECT_EQ(after.groups - before.groups, 1u);
  EXPECT_EQ(after.syncs - before.syncs, 1u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
  EXPECT_EQ(Loaded(*index).chunks.size(), size_t{kBatches});
}

TEST_F(IndexTest, AFullQueueRefusesAndForgetsNothing) {
  auto index = Open();
  absl::Notification blocked, go;
  ASSERT_TRUE(index
                  ->Apply(IndexBatch(), SyncMode::kNoSync,
                          [&](const absl::Status&) {
                            blocked.Notify();
                            go.WaitForNotification();
                          })
                  .ok());
  blocked.WaitForNotification();
  absl::Status status;
  int accepted = 0;
  bool ran = false;
  while (status.ok()) {
    IndexBatch batch;
    batch.PutChunk(TestChunk(static_cast<uint64_t>(accepted + 1)));
    status = index->Apply(std::move(batch), SyncMode::kNoSync, [](const absl::Status&) {});
    if (status.ok()) ++accepted;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(accepted, int{kMaxQueuedIndexBatches});
  EXPECT_FALSE(ran);
  go.Notify();
  absl::Status flushed;
  do {
    flushed = index->Flush();  // refused like any other while the queue is still full
  } while (absl::IsResourceExhausted(flushed));
  ASSERT_TRUE(flushed.ok()) << flushed;
  EXPECT_EQ(Loaded(*index).chunks.size(), static_cast<size_t>(accepted));
}

TEST_F(IndexTest, ClosingAppliesWhatWasAccepted) {
  auto index = Open();
  int done = 0;
  for (uint64_t i = 1; i <= 50; ++i) {
    IndexBatch batch;
    batch.PutChunk(TestChunk(i));
    ASSERT_TRUE(
        index->Apply(std::move(batch), SyncMode::kNoSync, [&](const absl::Status&) { ++done; })
            .ok());
  }
  index.reset();
  EXPECT_EQ(done, 50);
  EXPECT_EQ(Loaded(*Open()).chunks.size(), 50u);
}

TEST_F(IndexTest, ASecondOpenIsRefusedNamingTheDirectory) {
  auto index = Open();
  auto second = RocksIndex::Open({.directory = directory_.path() + "/index"});
  ASSERT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr(directory_.path()));
}

TEST_F(IndexTest, AnotherStoresIndexAndAMissingOneAreRefused) {
  Open({.store_id = {1}}).reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(
      RocksIndex::Open({.directory = directory_.path() + "/index", .store_id = {2}}).status()));
  EXPECT_TRUE(absl::IsNotFound(
      RocksIndex::Open({.directory = directory_.path() + "/none", .create = false}).status()));
}

TEST_F(IndexTest, TheCleanMarkIsTakenBackWhenTheIndexIsOpened) {
  EXPECT_TRUE(Open()->FoundCleanShutdown()) << "nothing can be half-done in a new index";
  EXPECT_FALSE(Open()->FoundCleanShutdown());
  auto index = Open();
  IndexBatch batch;
  batch.SetCleanShutdown(true);
  ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kSync).ok());
  index.reset();
  EXPECT_TRUE(Open()->FoundCleanShutdown());
  EXPECT_FALSE(Open()->FoundCleanShutdown());
}

TEST_F(IndexTest, ReadingOnlyRefusesWrites) {
  Open().reset();
  auto index = Open({.read_only = true});
  EXPECT_TRUE(absl::IsFailedPrecondition(
      index->Apply(IndexBatch(), SyncMode::kSync, [](const absl::Status&) {})));
}

// The tail of the log is what a crash tears; what was applied before is still there.
TEST_F(IndexTest, ATornLogLosesOnlyItsTail) {
  auto index = Open();
  for (uint64_t i = 1; i <= 20; ++i) {
    IndexBatch batch;
    batch.PutChunk(TestChunk(i));
    ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kSync).ok());
  }
  std::vector<std::string> logs = FilesOfIndex(".log");
  ASSERT_FALSE(logs.empty());
  std::string copy = directory_.path() + "/copy";
  std::filesystem::copy(directory_.path() + "/index", copy);  // as a crash leaves it
  index.reset();
  std::filesystem::path log =
      std::filesystem::path(copy) / std::filesystem::path(logs[0]).filename();
  std::filesystem::resize_file(log, std::filesystem::file_size(log) - 50);
  std::filesystem::remove(copy + "/LOCK");
  auto torn = RocksIndex::Open({.directory = copy});
  ASSERT_TRUE(torn.ok()) << torn.status();
  EXPECT_EQ(Loaded(**torn).chunks.size(), 19u);
}

TEST_F(IndexTest, ADamagedBlockCostsItsOwnRecordsOnly) {
  constexpr uint64_t kChunks = 20'000;
  auto index = Open();
  IndexBatch batch;
  for (uint64_t i = 1; i <= kChunks; ++i) batch.PutChunk(TestChunk(i));
  ASSERT_TRUE(ApplyBlocking(*index, std::move(batch), SyncMode::kSync).ok());
  index.reset();
  Open().reset();  // the log is replayed into a table
  std::string largest;
  for (const std::string& name : FilesOfIndex(".sst")) {
    if (largest.empty() || std::filesystem::file_size(name) > std::filesystem::file_size(largest)) {
      largest = name;
    }
  }
  ASSERT_FALSE(largest.empty());
  for (double part : {0.0, 0.5}) {
    std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
    auto offset = static_cast<std::streamoff>(
        part * static_cast<double>(std::filesystem::file_size(largest)) + 1000);
    file.seekg(offset);
    char byte = 0;
    file.read(&byte, 1);
    byte = static_cast<char>(byte ^ 8);
    file.seekp(offset);
    file.write(&byte, 1);
  }
  index = Open();
  ASSERT_NE(index, nullptr);
  CollectingVisitor seen = Loaded(*index);
  EXPECT_EQ(seen.meta.damaged_records, 2u);
  EXPECT_LT(seen.chunks.size(), kChunks);
  EXPECT_GT(seen.chunks.size(), kChunks - 600) << "two blocks of about 110 records each";
  for (const auto& [id, record] : seen.chunks) EXPECT_EQ(record, TestChunk(record.epoch));
}

TEST_F(IndexTest, InjectedFaultsHitTheBatchTheyName) {
  FaultIndex index(Open());
  auto put = [&](uint64_t i) {
    IndexBatch batch;
    batch.PutChunk(TestChunk(i));
    return ApplyBlocking(index, std::move(batch), SyncMode::kNoSync);
  };
  index.Inject(1, IndexFault::kFail, false);
  EXPECT_TRUE(put(1).ok());
  EXPECT_TRUE(absl::IsUnavailable(put(2)));
  EXPECT_TRUE(put(3).ok());
  index.Inject(3, IndexFault::kDrop, true);
  EXPECT_TRUE(put(4).ok());
  EXPECT_TRUE(put(5).ok());
  index.Inject(5, IndexFault::kRefuse, true);
  EXPECT_TRUE(absl::IsUnavailable(put(6)));
  index.ClearFault();
  EXPECT_TRUE(put(7).ok());
  CollectingVisitor seen = Loaded(index);
  std::vector<uint64_t> epochs;
  for (const auto& [id, record] : seen.chunks) epochs.push_back(record.epoch);
  EXPECT_THAT(epochs, ::testing::UnorderedElementsAre(1, 3, 7));
}

}  // namespace
}  // namespace turnkeep
