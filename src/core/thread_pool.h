// A fixed set of threads that work through numbered tasks together with the caller.
//
// Which thread runs which task is not fixed, so tasks must not depend on it, and the
// results that are computed with it do not either.
//
// Between rounds the threads look for work for some microseconds before they sleep: rounds that
// follow one another closely do not pay for waking.
//
// Thread-safety: one ParallelFor at a time.
//
//   ThreadPool pool(2);
//   pool.ParallelFor(rows, [&](size_t row, uint32_t worker) { … });
#pragma once

#include <absl/synchronization/mutex.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace turnkeep {

inline constexpr uint32_t kMaxThreads = 64;

class ThreadPool {
 public:
  // `threads` in 1..kMaxThreads, the caller included.
  explicit ThreadPool(uint32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t thread_count() const { return static_cast<uint32_t>(threads_.size()) + 1; }

  // Runs task(i, worker) for every i < count, worker < thread_count(), and returns when
  // all are done. A count of one runs on the caller.
  void ParallelFor(size_t count, const std::function<void(size_t, uint32_t)>& task);

 private:
  void Worker(uint32_t worker);
  void RunTasks(uint32_t worker);

  absl::Mutex mutex_;
  // Changed under mutex_ where somebody may sleep on it. Release and acquire: round_ publishes the
  // task to the workers, busy_ their results to the caller.
  std::atomic<uint64_t> round_{0};  // of ParallelFor calls
  std::atomic<uint32_t> busy_{0};   // workers that are still in the round
  std::atomic<bool> stop_{false};

  // Of the running round.
  const std::function<void(size_t, uint32_t)>* task_ = nullptr;
  size_t count_ = 0;
  std::atomic<size_t> next_{0};  // relaxed: it only hands out numbers

  std::vector<std::thread> threads_;
};

}  // namespace turnkeep
