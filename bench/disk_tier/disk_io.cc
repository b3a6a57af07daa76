// The extent store against the raw ring: the same sizes, depth, file system and file.
//
//   bench_disk_io DIRECTORY [MIB [IO_KIB [DEPTH]]]     default 1024 MiB, 1024 KiB, depth 32
//
// The bound is a loop of io_uring direct reads or writes over one preallocated file. Rounds
// of both alternate, and each is given as its median; writes go to slots that have been
// written before, in both.
#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <absl/synchronization/mutex.h>

#include "disk_tier/aligned_buffer.h"
#include "disk_tier/extent_store.h"

namespace turnkeep {
namespace {

constexpr int kRounds = 5;

struct Setup {
  std::string directory;
  uint64_t total_bytes = 1024 * kMiB;
  uint64_t io_bytes = 1024 * kKiB;
  unsigned depth = 32;
  uint64_t count() const { return total_bytes / io_bytes; }
};

using Clock = std::chrono::steady_clock;
double Rate(const Setup& setup, Clock::time_point start) {
  double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return static_cast<double>(setup.total_bytes) / seconds / 1e9;
}

// One buffer an operation in flight, registered, used in turn.
double RawRing(const Setup& setup, int fd, bool write, AlignedBuffer& memory) {
  io_uring ring;
  if (io_uring_queue_init(setup.depth, &ring,
                          IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) < 0) {
    std::abort();
  }
  iovec iov{memory.data(), memory.size()};
  bool fixed = io_uring_register_buffers(&ring, &iov, 1) == 0;
  auto start = Clock::now();
  uint64_t submitted = 0, completed = 0;
  std::vector<unsigned> free;
  for (unsigned i = 0; i < setup.depth; ++i) free.push_back(i);
  while (completed < setup.count()) {
    while (!free.empty() && submitted < setup.count()) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring);
      if (sqe == nullptr) break;
      std::byte* buffer = memory.data() + free.back() * setup.io_bytes;
      uint64_t offset = kBlockBytes + submitted * setup.io_bytes;
      auto bytes = static_cast<unsigned>(setup.io_bytes);
      if (write) {
        fixed ? io_uring_prep_write_fixed(sqe, fd, buffer, bytes, offset, 0)
              : io_uring_prep_write(sqe, fd, buffer, bytes, offset);
      } else {
        fixed ? io_uring_prep_read_fixed(sqe, fd, buffer, bytes, offset, 0)
              : io_uring_prep_read(sqe, fd, buffer, bytes, offset);
      }
      io_uring_sqe_set_data64(sqe, free.back());
      free.pop_back();
      ++submitted;
    }
    io_uring_submit_and_wait(&ring, 1);
    unsigned head = 0, seen = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&ring, head, cqe) {
      if (cqe->res != static_cast<int>(setup.io_bytes)) std::abort();
      free.push_back(static_cast<unsigned>(cqe->user_data));
      ++seen;
    }
    io_uring_cq_advance(&ring, seen);
    completed += seen;
  }
  double rate = Rate(setup, start);
  io_uring_queue_exit(&ring);
  return rate;
}

double ThroughStore(const Setup& setup, ExtentStore& store, const std::vector<ExtentRef>& refs,
                    bool write, AlignedBuffer& memory) {
  absl::Mutex mutex;
  std::vector<unsigned> free;
  for (unsigned i = 0; i < setup.depth; ++i) free.push_back(i);
  auto start = Clock::now();
  for (ExtentRef ref : refs) {
    unsigned place = 0;
    {
      absl::MutexLock lock(&mutex);
      mutex.Await(absl::Condition(
          +[](std::vector<unsigned>* f) { return !f->empty(); }, &free));
      place = free.back();
      free.pop_back();
    }
    std::span<std::byte> buffer = memory.span().subspan(place * setup.io_bytes, setup.io_bytes);
    auto done = [&, place](const absl::Status& status, uint64_t) {
      if (!status.ok()) std::abort();
      absl::MutexLock lock(&mutex);
      free.push_back(place);
    };
    absl::Status status = write ? store.Write(ref, buffer, done) : store.Read(ref, 0, buffer, done);
    if (!status.ok()) std::abort();
  }
  {
    absl::MutexLock lock(&mutex);
    auto all = [&] { return free.size() == setup.depth; };
    mutex.Await(absl::Condition(&all));
  }
  return Rate(setup, start);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_disk_io DIRECTORY [MIB [IO_KIB [DEPTH]]]\n");
    return 2;
  }
  Setup setup{.directory = std::string(argv[1]) + "/bench-disk-io"};
  if (argc > 2) setup.total_bytes = std::strtoull(argv[2], nullptr, 10) * kMiB;
  if (argc > 3) setup.io_bytes = std::strtoull(argv[3], nullptr, 10) * kKiB;
  if (argc > 4) setup.depth = static_cast<unsigned>(std::atoi(argv[4]));
  std::filesystem::remove_all(setup.directory);
  auto device = OpenBestBlockDevice(setup.directory, {.queue_depth = setup.depth}).value();
  auto store = ExtentStore::Open(device.get(), {.capacity_bytes = setup.total_bytes + 64 * kMiB,
                                                .file_bytes = setup.total_bytes + kBlockBytes})
                   .value();
  AlignedBuffer memory(setup.depth * setup.io_bytes);
  std::memset(memory.data(), 0x5A, memory.size());
  device->RegisterMemory(memory.span());
  std::vector<ExtentRef> refs;
  for (uint64_t i = 0; i < setup.count(); ++i) {
    refs.push_back(store->Allocate(setup.io_bytes, WritePurpose::kDurability).value());
  }
  std::string name = setup.directory + "/00000001.tkx";
  int fd = open(name.c_str(), O_RDWR | O_DIRECT);
  if (fd < 0) std::abort();
  ThroughStore(setup, *store, refs, true, memory);  // first writes convert preallocated space
  for (bool write : {true, false}) {
    std::vector<double> raw, ours;
    for (int round = 0; round < kRounds; ++round) {
      raw.push_back(RawRing(setup, fd, write, memory));
      ours.push_back(ThroughStore(setup, *store, refs, write, memory));
    }
    std::printf("%s %llu KiB depth %u: raw %.2f GB/s, extent store %.2f GB/s, share %.2f\n",
                write ? "write" : "read", static_cast<unsigned long long>(setup.io_bytes / kKiB),
                setup.depth, Median(raw), Median(ours), Median(ours) / Median(raw));
  }
  std::printf("%s\n", device->Describe().c_str());
  close(fd);
  device->UnregisterMemory(memory.span());
  store.reset();
  device.reset();
  std::filesystem::remove_all(setup.directory);
  return 0;
}

}  // namespace
}  // namespace turnkeep

int main(int argc, char** argv) { return turnkeep::Main(argc, argv); }
