#include "core/thread_pool.h"

#include "core/check.h"

namespace turnkeep {

ThreadPool::ThreadPool(uint32_t threads) {
  TK_CHECK(threads >= 1 && threads <= kMaxThreads);
  for (uint32_t worker = 1; worker < threads; ++worker) {
    threads_.emplace_back([this, worker] { Worker(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(size_t count, const std::function<void(size_t, uint32_t)>& task) {
  if (count <= 1 || threads_.empty()) {
    for (size_t i = 0; i < count; ++i) task(i, 0);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    task_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_ = static_cast<uint32_t>(threads_.size());
    ++round_;
  }
  RunTasks(0);
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return busy_ == 0; };
  mutex_.Await(absl::Condition(&idle));
}

void ThreadPool::Worker(uint32_t worker) {
  uint64_t seen = 0;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto wanted = [this, &seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stop_ || round_ != seen;
      };
      mutex_.Await(absl::Condition(&wanted));
      if (stop_) return;
      seen = round_;
    }
    RunTasks(worker);
    absl::MutexLock lock(&mutex_);
    --busy_;
  }
}

void ThreadPool::RunTasks(uint32_t worker) {
  for (size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < count_;
       i = next_.fetch_add(1, std::memory_order_relaxed)) {
    (*task_)(i, worker);
  }
}

}  // namespace turnkeep
