#include "testing/simt/simt.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <ucontext.h>

namespace turnkeep::simt {

dim3 thread_index, block_index, block_dim;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;

struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
  bool zero;
};
// How many of the members have come; `passed` counts how often all had.
struct Gate {
  uint32_t members = 0;
  uint32_t arrived = 0;
  uint64_t passed = 0;
};
struct Fiber {
  ucontext_t start;
  std::jmp_buf place;
  bool begun = false;
  bool ended = false;
  std::vector<std::vector<PendingCopy>> groups;  // committed
  std::vector<PendingCopy> open;
};
struct Block {
  std::vector<Fiber> fibers;
  std::vector<char> stacks;
  std::vector<Gate> warps;
  std::vector<WarpSlots> slots;
  Gate all;
  uint32_t current = 0;
  ucontext_t main_context;
  std::jmp_buf main_place;
  const std::function<void()>* kernel = nullptr;
};
Block block;
alignas(256) char shared_memory[kMaxSharedBytes];

void Check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

void Enter() {
  (*block.kernel)();
  block.fibers[block.current].ended = true;
  _longjmp(block.main_place, 1);
}

void Yield() {
  if (_setjmp(block.fibers[block.current].place) == 0) _longjmp(block.main_place, 1);
}

void Resume(uint32_t number) {
  block.current = number;
  thread_index = dim3(number, 0, 0);
  Fiber& fiber = block.fibers[number];
  if (_setjmp(block.main_place) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

void Pass(Gate& gate) {
  const uint64_t before = gate.passed;
  if (++gate.arrived == gate.members) {
    gate.arrived = 0;
    ++gate.passed;
  }
  while (gate.passed == before) Yield();
}

void Carry(std::vector<PendingCopy>& copies) {
  for (const PendingCopy& copy : copies) {
    if (copy.zero) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  copies.clear();
}

// Every fiber until its end; a round in which none can go on is a barrier that not all reach.
void RunBlock(uint32_t threads, size_t shared_bytes) {
  block.fibers.assign(threads, {});
  block.warps.assign((threads + 31) / 32, {});
  block.slots.resize(block.warps.size());
  block.all = {.members = threads};
  for (uint32_t i = 0; i < threads; ++i) {
    ++block.warps[i / 32].members;
    Fiber& fiber = block.fibers[i];
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = block.stacks.data() + i * kStackBytes;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Enter, 0);
  }
  std::fill(shared_memory, shared_memory + shared_bytes, static_cast<char>(0xFF));
  const auto passes = [] {
    uint64_t sum = block.all.passed;
    for (const Gate& warp : block.warps) sum += warp.passed;
    return sum;
  };
  for (uint32_t left = threads; left > 0;) {
    const uint64_t before = passes();
    const uint32_t left_before = left;
    for (uint32_t i = 0; i < threads; ++i) {
      if (block.fibers[i].ended) continue;
      Resume(i);
      if (block.fibers[i].ended) --left;
    }
    Check(left < left_before || passes() > before, "a barrier that not all threads reach");
  }
}

}  // namespace

void Launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
  Check(threads.x > 0 && threads.x <= kMaxThreads && threads.y == 1 && threads.z == 1,
        "threads of a block");
  Check(grid.x > 0 && grid.y > 0 && grid.z == 1, "an empty or three-dimensional grid");
  Check(shared_bytes <= kMaxSharedBytes, "shared memory");
  block.stacks.resize(threads.x * kStackBytes);
  block.kernel = &kernel;
  block_dim = threads;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block_index = dim3(x, y, 0);
      RunBlock(threads.x, shared_bytes);
    }
  }
}

void* DynamicShared() { return shared_memory; }
void BlockBarrier() { Pass(block.all); }
void WarpBarrier() { Pass(block.warps[block.current / 32]); }
WarpSlots& Slots() { return block.slots[block.current / 32]; }

void AsyncCopy(void* to, const void* from, size_t bytes, bool zero) {
  block.fibers[block.current].open.push_back({to, from, bytes, zero});
}
void AsyncCommit() {
  Fiber& fiber = block.fibers[block.current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void AsyncWait(size_t groups_left) {
  Fiber& fiber = block.fibers[block.current];
  while (fiber.groups.size() > groups_left) {
    Carry(fiber.groups.front());
    fiber.groups.erase(fiber.groups.begin());
  }
}

}  // namespace turnkeep::simt
