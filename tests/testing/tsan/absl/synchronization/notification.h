// absl::Notification for the thread sanitizer's build; see mutex.h.
#pragma once

#include <absl/synchronization/mutex.h>

namespace absl {

class Notification {
 public:
  Notification() = default;
  Notification(const Notification&) = delete;
  Notification& operator=(const Notification&) = delete;
  // A waiter may destroy this as soon as it has seen the notification.
  ~Notification() { MutexLock lock(&mutex_); }

  bool HasBeenNotified() const {
    MutexLock lock(&mutex_);
    return notified_;
  }
  void WaitForNotification() const { MutexLock lock(&mutex_, Condition(&notified_)); }
  bool WaitForNotificationWithTimeout(Duration timeout) const {
    MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(Condition(&notified_), timeout);
  }
  void Notify() {
    MutexLock lock(&mutex_);
    notified_ = true;
  }

 private:
  mutable Mutex mutex_;
  bool notified_ = false;
};

}  // namespace absl
