// absl::BlockingCounter for the thread sanitizer's build; see mutex.h.
#pragma once

#include <absl/synchronization/mutex.h>

namespace absl {

class BlockingCounter {
 public:
  explicit BlockingCounter(int count) : count_(count), done_(count == 0) {}
  BlockingCounter(const BlockingCounter&) = delete;
  BlockingCounter& operator=(const BlockingCounter&) = delete;

  bool DecrementCount() {
    MutexLock lock(&mutex_);
    done_ = --count_ == 0;
    return done_;
  }
  void Wait() { MutexLock lock(&mutex_, Condition(&done_)); }

 private:
  Mutex mutex_;
  int count_;
  bool done_;
};

}  // namespace absl
