// A fixed set of threads that work through numbered tasks together with the caller.
//
// Which thread runs which task is not fixed, so tasks must not depend on it, and the
// results that are computed with it do not either.
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
  uint64_t round_ ABSL_GUARDED_BY(mutex_) = 0;  // of ParallelFor calls
  uint32_t busy_ ABSL_GUARDED_BY(mutex_) = 0;   // workers that are still in the round
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  // Of the running round; published to the workers by mutex_.
  const std::function<void(size_t, uint32_t)>* task_ = nullptr;
  size_t count_ = 0;
  std::atomic<size_t> next_{0};  // relaxed: it only hands out numbers

  std::vector<std::thread> threads_;
};

}  // namespace turnkeep
