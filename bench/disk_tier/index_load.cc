// How long the index takes to load N chunk records, and what memory it holds then.
//
//   bench_index_load DIRECTORY [CHUNKS]        default 1,000,000
//
// Writes the records in batches of 100 (random ids, as hashes are), reopens, and loads three times:
// the first right after reopening, the others with a warm page cache.
#include <malloc.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>

#include "disk_tier/recovery.h"
#include "disk_tier/rocks_index.h"

namespace turnkeep {
namespace {

class Counter : public IndexVisitor {
 public:
  void OnTenant(const TenantRecord&) override {}
  void OnLayout(const LayoutRecord&) override {}
  void OnChunk(const ChunkRecord& record) override {
    ++chunks;
    check += record.epoch;
  }
  void OnSession(const SessionRecord&) override {}
  void OnSpanBlock(const SpanBlock&) override {}
  void OnDamaged(const DamagedRecord&) override {}
  uint64_t chunks = 0;
  uint64_t check = 0;
};

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

uint64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

void Fill(const std::string& directory, uint64_t count) {
  auto index = RocksIndex::Open({.directory = directory}).value();
  std::mt19937_64 random(1);
  auto start = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < count;) {
    IndexBatch batch;
    for (int j = 0; j < 100 && i < count; ++j, ++i) {
      ChunkRecord record{
          .layout = 1,
          .tenant = 1,
          .token_count = 64,
          .position_base = random() % 100'000,
          .epoch = i + 1,
          .root = {random(), random()},
          .extent = {static_cast<uint32_t>(i / 1000 + 1), static_cast<uint32_t>(i % 1000)},
          .slot_blocks = 64};
      for (ChunkId* id : {&record.id, &record.parent}) {
        for (size_t k = 0; k < 32; k += 8) {
          uint64_t value = random();
          std::memcpy(id->bytes.data() + k, &value, 8);
        }
      }
      batch.PutChunk(record);
    }
    if (!ApplyBlocking(*index, std::move(batch), SyncMode::kNoSync).ok()) std::abort();
  }
  std::printf("put %llu records: %.2f s\n", static_cast<unsigned long long>(count), Seconds(start));
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_index_load DIRECTORY [CHUNKS]\n");
    return 2;
  }
  std::string directory = std::string(argv[1]) + "/bench-index";
  uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1'000'000;
  std::filesystem::remove_all(directory);
  Fill(directory, count);
  malloc_trim(0);
  uint64_t before = ResidentBytes();
  auto start = std::chrono::steady_clock::now();
  auto index = RocksIndex::Open({.directory = directory}).value();
  std::printf("open: %.2f s\n", Seconds(start));
  for (int round = 0; round < 3; ++round) {
    Counter counter;
    start = std::chrono::steady_clock::now();
    if (!index->Load(counter).ok() || counter.chunks != count) std::abort();
    double seconds = Seconds(start);
    std::printf("load: %.3f s, %.2f us a record\n", seconds,
                seconds * 1e6 / static_cast<double>(count));
  }
  std::printf("resident: +%.1f MiB, %.1f bytes a chunk; RocksDB reports %.1f MiB\n",
              static_cast<double>(ResidentBytes() - before) / kMiB,
              static_cast<double>(ResidentBytes() - before) / static_cast<double>(count),
              static_cast<double>(index->Stats().memory_bytes) / kMiB);
  index.reset();
  std::filesystem::remove_all(directory);
  return 0;
}

}  // namespace
}  // namespace turnkeep

int main(int argc, char** argv) { return turnkeep::Main(argc, argv); }
