#include "disk_tier/fsck.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>

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

class FsckTest : public ::testing::Test {
 protected:
  DiskTier Open() {
    CollectingVisitor seen;
    auto tier = OpenDiskTier(SmallTier(path()), seen);
    EXPECT_TRUE(tier.ok()) << tier.status();
    return tier.ok() ? *std::move(tier) : DiskTier{};
  }
  FsckReport Check(FsckOptions options = {}) {
    auto report = Fsck(path(), std::move(options));
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : FsckReport{};
  }
  void FlipBit(uint32_t file, uint64_t offset, int bit) {
    std::fstream stream(path() + fmt::format("/extents/{:08}.tkx", file),
                        std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    int byte = stream.get();
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(static_cast<char>(byte ^ (1 << bit)));
  }
  std::string path() const { return directory_.path() + "/data"; }

  TemporaryDirectory directory_;
  ChunkGeometry geometry_ = GeometryOf(SmallLayout(), 16);
};

TEST_F(FsckTest, AWholeDirectoryIsClean) {
  {
    DiskTier tier = Open();
    WriteChunks(tier, 1, 40);
  }
  uint64_t last_done = 0, total = 0;
  FsckOptions options;
  options.progress = [&](uint64_t done, uint64_t of) {
    EXPECT_GE(done, last_done);
    last_done = done;
    total = of;
  };
  FsckReport report = Check(std::move(options));
  EXPECT_TRUE(report.Clean());
  EXPECT_EQ(report.chunks_ok, 40u);
  EXPECT_EQ(total, 40 * geometry_.slot_bytes);
  EXPECT_EQ(last_done, total);
  EXPECT_GE(report.bytes_read, 40 * geometry_.image_bytes);
}

// The expected damage is worked out from the geometry: header, layer, or bytes that
// belong to neither (padding), which is no damage.
TEST_F(FsckTest, FindsExactlyTheFlippedBits) {
  constexpr uint64_t kChunks = 300;
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, kChunks);
  }
  std::map<ExtentRef, ChunkRecord> by_place;
  for (const ChunkRecord& record : written) by_place[record.extent] = record;
  uint64_t header_bytes = EncodedChunkHeaderBytes(3, 16, 0);
  std::mt19937_64 random(7);
  std::map<ChunkId, std::set<uint32_t>> expected_layers;
  std::set<ChunkId> expected_headers;
  for (const auto& entry : std::filesystem::directory_iterator(path() + "/extents")) {
    auto file = static_cast<uint32_t>(std::stoul(entry.path().filename().string()));
    for (uint64_t start = kExtentHeaderBytes; start < entry.file_size(); start += kMiB / 4) {
      uint64_t offset = start + random() % (kMiB / 4);
      if (offset >= entry.file_size()) continue;
      FlipBit(file, offset, static_cast<int>(random() % 8));
      auto slot = static_cast<uint32_t>((offset - kExtentHeaderBytes) / geometry_.slot_bytes);
      auto it = by_place.find({file, slot});
      if (it == by_place.end()) continue;
      uint64_t in_slot = offset - SlotOffset(slot, geometry_.slot_bytes);
      if (in_slot < header_bytes) expected_headers.insert(it->second.id);
      for (uint32_t layer = 0; layer < 3; ++layer) {
        uint64_t page = geometry_.page_offset[layer];
        if (in_slot >= page && in_slot < page + geometry_.page_bytes[layer]) {
          expected_layers[it->second.id].insert(layer);
        }
      }
    }
  }
  for (const ChunkId& id : expected_headers) expected_layers.erase(id);
  ASSERT_GT(expected_layers.size(), 20u);
  FsckReport report = Check();
  std::map<ChunkId, std::set<uint32_t>> found;
  std::set<ChunkId> found_headers;
  for (const FsckDamage& damage : report.damaged) {
    if (damage.layers.empty()) {
      found_headers.insert(damage.chunk);
    } else {
      found[damage.chunk] = {damage.layers.begin(), damage.layers.end()};
    }
  }
  EXPECT_EQ(found, expected_layers);
  EXPECT_EQ(found_headers, expected_headers);
  EXPECT_EQ(report.chunks_damaged, expected_layers.size() + expected_headers.size());
  EXPECT_EQ(report.chunks_ok, kChunks - report.chunks_damaged);
  EXPECT_FALSE(report.Clean());
}

TEST_F(FsckTest, RepairRemovesDamagedEntriesAndNothingElse) {
  std::vector<ChunkRecord> written;
  {
    DiskTier tier = Open();
    written = WriteChunks(tier, 1, 10);
  }
  FlipBit(written[3].extent.file,
          SlotOffset(written[3].extent.slot, geometry_.slot_bytes) + geometry_.page_offset[1], 0);
  FsckOptions options;
  options.repair = true;
  FsckReport report = Check(std::move(options));
  EXPECT_EQ(report.removed_entries, 1u);
  ASSERT_EQ(report.damaged.size(), 1u);
  EXPECT_EQ(report.damaged[0].chunk, written[3].id);
  EXPECT_THAT(report.damaged[0].layers, ::testing::ElementsAre(1u));
  report = Check();
  EXPECT_TRUE(report.Clean());
  EXPECT_EQ(report.chunks_ok, 9u);
  // Its header is still whole: an orphan, and harmless.
  EXPECT_EQ(report.orphan_slots, 1u);
}

TEST_F(FsckTest, SlotsUsedTwiceAndOutOfRangeAreFound) {
  {
    DiskTier tier = Open();
    std::vector<ChunkRecord> written = WriteChunks(tier, 1, 5);
    IndexBatch batch;
    ChunkRecord twice = TestChunk(100);
    twice.epoch = 0;
    twice.extent = written[2].extent;
    twice.slot_blocks = written[2].slot_blocks;
    batch.PutChunk(twice);
    ChunkRecord outside = TestChunk(101);
    outside.extent = {written[0].extent.file, 5000};
    outside.slot_blocks = written[0].slot_blocks;
    batch.PutChunk(outside);
    ChunkRecord unknown = TestChunk(102);
    unknown.layout = 9;
    unknown.extent = {written[0].extent.file, 9};
    unknown.slot_blocks = written[0].slot_blocks;
    batch.PutChunk(unknown);
    ASSERT_TRUE(ApplyBlocking(*tier.index, std::move(batch), SyncMode::kSync).ok());
  }
  FsckReport report = Check();
  EXPECT_EQ(report.chunks_ok, 5u);
  EXPECT_EQ(report.chunks_doubly_used, 1u);
  EXPECT_EQ(report.chunks_out_of_range, 1u);
  EXPECT_EQ(report.chunks_unknown_layout, 1u);
  EXPECT_FALSE(report.Clean());
}

TEST_F(FsckTest, ChecksOneTenantOnlyWhenAsked) {
  {
    DiskTier tier = Open();
    WriteChunks(tier, 1, 5);
  }
  FsckOptions options;
  options.tenant = "bob";
  EXPECT_EQ(Check(std::move(options)).chunks_ok, 0u);
  options = {};
  options.tenant = "alice";
  EXPECT_EQ(Check(std::move(options)).chunks_ok, 5u);
}

TEST_F(FsckTest, TellsDamagedFileHeadersAndIncompleteSessions) {
  {
    DiskTier tier = Open();
    std::vector<ChunkRecord> written = WriteChunks(tier, 1, 3);
    IndexBatch batch;
    batch.PutSession({.number = 1,
                      .name = "whole",
                      .token_count = 32,
                      .span_blocks = 1,
                      .tenant = 1,
                      .layout = 1});
    batch.PutSpanBlock({.session = 1, .slices = {{written[0].id, 0, 16}, {written[1].id, 0, 16}}});
    batch.PutSession({.number = 2,
                      .name = "half",
                      .token_count = 32,
                      .span_blocks = 1,
                      .tenant = 1,
                      .layout = 1});
    batch.PutSpanBlock(
        {.session = 2, .slices = {{written[0].id, 0, 16}, {TestChunk(9).id, 0, 16}}});
    ASSERT_TRUE(ApplyBlocking(*tier.index, std::move(batch), SyncMode::kSync).ok());
  }
  FlipBit(1, 20, 3);
  FsckReport report = Check();
  EXPECT_EQ(report.damaged_file_headers, 1u);
  EXPECT_EQ(report.chunks_ok, 3u) << "the records still say where the chunks are";
  EXPECT_EQ(report.sessions, 2u);
  EXPECT_EQ(report.incomplete_sessions, 1u);
}

TEST_F(FsckTest, IsRefusedWhileTheDirectoryIsOpenOrNotThere) {
  EXPECT_TRUE(absl::IsNotFound(Fsck(path(), {}).status()));
  DiskTier tier = Open();
  EXPECT_TRUE(absl::IsFailedPrecondition(Fsck(path(), {}).status()));
}

}  // namespace
}  // namespace turnkeep
