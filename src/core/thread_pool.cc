#include "core/thread_pool.h"

#include "core/check.h"

namespace turnkeep {

namespace {

// About 50 microseconds: longer than a sleeping thread takes to wake.
constexpr int kSpins = 1500;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

template <typename Done>
bool SpinUntil(const Done& done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    Pause();
  }
  return false;
}

}  // namespace

ThreadPool::ThreadPool(uint32_t threads) {
  TK_CHECK(threads >= 1 && threads <= kMaxThreads);
  for (uint32_t worker = 1; worker < threads; ++worker) {
    threads_.emplace_back([this, worker] { Worker(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stop_.store(true, std::memory_order_release);
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(size_t count, const std::function<void(size_t, uint32_t)>& task) {
  if (count <= 1 || threads_.empty()) {
    for (size_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  task_ = &task;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<uint32_t>(threads_.size()), std::memory_order_relaxed);
  {
    absl::MutexLock lock(&mutex_);
    round_.fetch_add(1, std::memory_order_release);
  }
  RunTasks(0);
  const auto idle = [this] { return busy_.load(std::memory_order_acquire) == 0; };
  if (SpinUntil(idle)) return;
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&idle));
}

void ThreadPool::Worker(uint32_t worker) {
  uint64_t seen = 0;
  const auto wanted = [this, &seen] {
    return stop_.load(std::memory_order_acquire) || round_.load(std::memory_order_acquire) != seen;
  };
  while (true) {
    if (!SpinUntil(wanted)) {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&wanted));
    }
    if (stop_.load(std::memory_order_acquire)) return;
    seen = round_.load(std::memory_order_acquire);
    RunTasks(worker);
    // Under the lock, whose release lets a sleeping caller look again.
    absl::MutexLock lock(&mutex_);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::RunTasks(uint32_t worker) {
  for (size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
       i = next_.fetch_add(1, std::memory_order_relaxed)) {
    (*task_)(i, worker);
  }
}

}  // namespace turnkeep
