#include "disk_tier/recovery.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "disk_tier/data_fixture.h"
#include "disk_tier/extent_file_header.h"
#include "testing/temporary_directory.h"

namespace turnkeep {
namespace {

using testing::CollectingVisitor;
using testing::SmallLayout;
using testing::SmallTier;
using testing::TemporaryDirectory;
using testing::TestChunk;
using testing::WriteChunks;

class RecoveryTest : public ::testing::Test {
 protected:
  DiskTier Open(CollectingVisitor* seen = nullptr) {
    CollectingVisitor ignored;
    auto tier = OpenDiskTier(SmallTier(path()), seen != nullptr ? *seen : ignored);
    EXPECT_TRUE(tier.ok()) << tier.status();
    return tier.ok() ? *std::move(tier) : DiskTier{};
  }
  void Apply(DiskTier& tier, IndexBatch batch) {
    ASSERT_TRUE(ApplyBlocking(*tier.index, std::move(batch), SyncMode::kSync).ok());
  }
  // What the records say must be what the accounting says, file by file.
  void ExpectAccountsMatch(DiskTier& tier, const CollectingVisitor& seen) {
    std::map<uint32_t, uint32_t> used;
    uint64_t bytes = 0;
    for (const auto& [id, record] : seen.chunks) {
      ++used[record.extent.file];
      bytes += record.slot_blocks * kBlockBytes;
    }
    uint64_t file_bytes = 0;
    for (const ExtentFileUsage& file : tier.extents->Files()) {
      EXPECT_EQ(file.used_slots, used[file.file]) << file.file;
      EXPECT_GT(file.used_slots, 0u) << "a file that nothing uses should have gone";
      used.erase(file.file);
      file_bytes += file.file_bytes;
    }
    EXPECT_THAT(used, ::testing::ElementsAre()) << "records of files that are not there";
    EXPECT_EQ(tier.extents->Usage().used_bytes, bytes);
    EXPECT_EQ(tier.report.used_bytes, bytes);
    uint64_t on_disk = 0;
    std::vector<DeviceFile> files = tier.device->ListFiles().value();
    for (const DeviceFile& file : files) on_disk += file.bytes;
    EXPECT_EQ(on_disk, file_bytes);
  }
  std::string path() const { return directory_.path() + "/data"; }
  std::string ExtentFile(uint32_t file) const {
    return path() + fmt::format("/extents/{:08}.tkx", file);
  }
  void FlipByte(const std::string& name, uint64_t offset) {
    std::fstream file(name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    int byte = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 1));
  }

  TemporaryDirectory directory_;
};

TEST_F(RecoveryTest, ANewDirectoryIsEmptyAndPrivate) {
  DiskTier tier = Open();
  EXPECT_EQ(tier.report.chunks, 0u);
  EXPECT_EQ(tier.extents->Usage().file_bytes, 0u);
  EXPECT_TRUE(std::filesystem::exists(path() + "/FORMAT"));
  for (const char* name : {"", "/extents", "/index"}) {
    auto permissions = std::filesystem::status(path() + name).permissions();
    EXPECT_EQ(permissions & std::filesystem::perms::mask, std::filesystem::perms::owner_all)
        << name;
  }
}

TEST_F(RecoveryTest, EveryIndexedChunkIsBackAndTheAccountsMatch) {
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, 50);
    WriteChunks(tier, 51, 10, 5);  // another slot class
    // Allocated, never indexed: what a crash leaves behind.
    ASSERT_TRUE(
        tier.extents->Allocate(written[0].slot_blocks * kBlockBytes, WritePurpose::kDurability)
            .ok());
    ASSERT_TRUE(tier.extents->Allocate(11 * kBlockBytes, WritePurpose::kDurability).ok());
  }
  CollectingVisitor seen;
  DiskTier tier = Open(&seen);
  EXPECT_EQ(tier.report.chunks, 60u);
  EXPECT_EQ(tier.report.dropped_chunks, 0u);
  EXPECT_EQ(tier.report.deleted_files, 1u) << "the file of the class that holds nothing";
  EXPECT_FALSE(tier.report.clean_shutdown);
  for (const ChunkRecord& record : written) EXPECT_EQ(seen.chunks.at(record.id), record);
  ExpectAccountsMatch(tier, seen);
  EXPECT_EQ(tier.meta.next_epoch, 61u);
}

TEST_F(RecoveryTest, ADeletedFilesNumberIsNotGivenAgain) {
  {
    DiskTier tier = Open();
    std::vector<ChunkRecord> written = WriteChunks(tier, 1, 1);
    IndexBatch batch;
    batch.DeleteChunk(written[0].id);
    Apply(tier, std::move(batch));
  }
  DiskTier tier = Open();
  EXPECT_TRUE(tier.device->ListFiles()->empty());
  EXPECT_EQ(tier.extents->Allocate(kBlockBytes, WritePurpose::kDurability)->file, 2u);
}

TEST_F(RecoveryTest, OfTwoRecordsInOneSlotTheLaterEpochWins) {
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, 4);
    // An old deletion that did not survive the crash, in both orders of key.
    IndexBatch batch;
    for (uint64_t number : {1001, 1002, 1003, 1004, 1005, 1006}) {
      ChunkRecord stale = TestChunk(number);
      stale.epoch = 0;
      stale.extent = written[number % 4].extent;
      stale.slot_blocks = written[0].slot_blocks;
      batch.PutChunk(stale);
    }
    Apply(tier, std::move(batch));
  }
  {
    CollectingVisitor seen;
    DiskTier tier = Open(&seen);
    EXPECT_EQ(tier.report.dropped_chunks, 6u);
    ASSERT_EQ(seen.chunks.size(), 4u);
    for (const ChunkRecord& record : written) EXPECT_TRUE(seen.chunks.contains(record.id));
    ExpectAccountsMatch(tier, seen);
  }
  DiskTier again = Open();
  EXPECT_EQ(again.report.dropped_chunks, 0u) << "dropped records are deleted from the index";
}

TEST_F(RecoveryTest, RecordsThatCannotBeRightAreDroppedAndTold) {
  {
    DiskTier tier = Open();
    ChunkRecord good = WriteChunks(tier, 1, 1)[0];
    IndexBatch batch;
    ChunkRecord bad = TestChunk(2);
    bad.slot_blocks = good.slot_blocks;
    bad.extent = {good.extent.file, 4000};  // past the end
    batch.PutChunk(bad);
    bad = TestChunk(3);
    bad.extent = {77, 0};  // no such file
    batch.PutChunk(bad);
    bad = TestChunk(4);
    bad.extent = {good.extent.file, 1};
    bad.slot_blocks = good.slot_blocks + 1;  // another size
    batch.PutChunk(bad);
    Apply(tier, std::move(batch));
  }
  CollectingVisitor seen;
  DiskTier tier = Open(&seen);
  EXPECT_EQ(tier.report.chunks, 1u);
  EXPECT_EQ(tier.report.dropped_chunks, 3u);
  EXPECT_EQ(tier.report.problems.size(), 3u);
  EXPECT_EQ(seen.damaged.size(), 3u);
  ExpectAccountsMatch(tier, seen);
}

TEST_F(RecoveryTest, ADamagedFileHeaderCostsNoChunk) {
  {
    DiskTier tier = Open();
    WriteChunks(tier, 1, 20);
  }
  FlipByte(ExtentFile(1), 40);
  {
    CollectingVisitor seen;
    DiskTier tier = Open(&seen);
    EXPECT_EQ(tier.report.chunks, 20u);
    EXPECT_EQ(tier.report.repaired_headers, 1u);
    ExpectAccountsMatch(tier, seen);
  }
  EXPECT_EQ(Open().report.repaired_headers, 0u);
}

TEST_F(RecoveryTest, AMissingExtentFileCostsItsChunksOnly) {
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, 40);
  }
  std::filesystem::remove(ExtentFile(1));
  CollectingVisitor seen;
  DiskTier tier = Open(&seen);
  for (const ChunkRecord& record : written) {
    EXPECT_EQ(seen.chunks.contains(record.id), record.extent.file != 1);
  }
  ExpectAccountsMatch(tier, seen);
}

TEST_F(RecoveryTest, AFileCutShortLosesWhatWasCutOff) {
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, 10);
  }
  uint64_t slot_bytes = written[0].slot_blocks * kBlockBytes;
  std::filesystem::resize_file(ExtentFile(1), SlotOffset(4, slot_bytes) + 100);
  CollectingVisitor seen;
  DiskTier tier = Open(&seen);
  EXPECT_EQ(seen.chunks.size(), 4u);
  EXPECT_EQ(tier.report.dropped_chunks, 6u);
}

TEST_F(RecoveryTest, ASecondUserOfTheDirectoryIsRefused) {
  DiskTier tier = Open();
  CollectingVisitor seen;
  absl::Status second = OpenDiskTier(SmallTier(path()), seen).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(second)) << second;
  EXPECT_THAT(std::string(second.message()), ::testing::HasSubstr(path()));
}

TEST_F(RecoveryTest, ANewerFormatAndAStrangeFormatFileAreRefused) {
  Open();
  std::string text;
  std::getline(std::ifstream(path() + "/FORMAT"), text, '\0');
  auto open_with = [&](const std::string& format) {
    std::ofstream(path() + "/FORMAT") << format;
    CollectingVisitor seen;
    return OpenDiskTier(SmallTier(path()), seen).status();
  };
  std::string newer = text;
  newer.replace(newer.find("format 1"), 8, "format 2");
  absl::Status status = open_with(newer);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("format 2"));
  EXPECT_TRUE(absl::IsDataLoss(open_with("")));
  EXPECT_TRUE(absl::IsDataLoss(open_with("hello\n")));
  EXPECT_TRUE(absl::IsDataLoss(open_with(text + "more")));
  EXPECT_TRUE(absl::IsDataLoss(open_with(text.substr(0, text.size() - 3))));
  std::filesystem::remove(path() + "/FORMAT");
  CollectingVisitor seen;
  EXPECT_TRUE(absl::IsDataLoss(OpenDiskTier(SmallTier(path()), seen).status()));
  EXPECT_TRUE(open_with(text).ok());
}

TEST_F(RecoveryTest, ACleanShutdownIsKnownOnce) {
  {
    DiskTier tier = Open();
    IndexBatch batch;
    batch.SetCleanShutdown(true);
    Apply(tier, std::move(batch));
  }
  EXPECT_TRUE(Open().report.clean_shutdown);
  EXPECT_FALSE(Open().report.clean_shutdown);
}

// Random histories of writes and deletions, cut off and reopened; seeds replay.
TEST_F(RecoveryTest, AccountsMatchAfterEveryReopeningOfARandomHistory) {
  uint64_t seed = std::random_device{}();
  if (const char* given = std::getenv("TURNKEEP_SEED")) seed = std::strtoull(given, nullptr, 10);
  SCOPED_TRACE(::testing::Message() << "TURNKEEP_SEED=" << seed);
  std::mt19937_64 random(seed);
  std::map<ChunkId, ChunkRecord> model;
  uint64_t next = 1;
  for (int round = 0; round < 8; ++round) {
    CollectingVisitor seen;
    DiskTier tier = Open(&seen);
    ASSERT_NE(tier.index, nullptr);
    EXPECT_EQ(seen.chunks.size(), model.size());
    for (const auto& [id, record] : model) ASSERT_EQ(seen.chunks.at(id), record);
    ExpectAccountsMatch(tier, seen);
    for (int step = 0; step < 10; ++step) {
      uint64_t count = random() % 10;
      auto tokens = static_cast<uint32_t>(random() % 16 + 1);
      for (const ChunkRecord& record : WriteChunks(tier, next, count, tokens)) {
        model[record.id] = record;
      }
      next += count;
      IndexBatch deletions;
      std::vector<ExtentRef> freed;
      for (auto it = model.begin(); it != model.end();) {
        if (random() % 4 != 0) {
          ++it;
          continue;
        }
        deletions.DeleteChunk(it->first);
        freed.push_back(it->second.extent);
        it = model.erase(it);
      }
      Apply(tier, std::move(deletions));
      for (ExtentRef ref : freed) tier.extents->Free(ref);
    }
  }
}

}  // namespace
}  // namespace turnkeep
