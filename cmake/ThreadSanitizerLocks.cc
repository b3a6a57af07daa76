// Tells the thread sanitizer of absl::Mutex and its relatives. Debian's Abseil is compiled without
// the sanitizer, which would see neither its locks nor the order they make. Linked into the tsan
// preset's programs only: the linker's --wrap sends our calls here (TurnkeepTargets.cmake names
// the symbols). What happens inside a call, others' conditions included, is done under
// the lock and not looked at.
#include <absl/synchronization/blocking_counter.h>
#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>
#include <absl/time/time.h>
#include <sanitizer/tsan_interface.h>

namespace {

constexpr unsigned kWrite = 0;
constexpr unsigned kRead = __tsan_mutex_read_lock;

// The lock is given up and had again.
template <typename Wait>
auto Divert(void* mutex, const Wait& wait) {
  __tsan_mutex_pre_unlock(mutex, kWrite);
  __tsan_mutex_post_unlock(mutex, kWrite);
  __tsan_mutex_pre_lock(mutex, kWrite);
  const auto result = wait();
  __tsan_mutex_post_lock(mutex, kWrite, 0);
  return result;
}

}  // namespace

extern "C" {

#define TURNKEEP_WRAP(result, symbol, ...) \
  result __real_##symbol(__VA_ARGS__);     \
  result __wrap_##symbol(__VA_ARGS__)

TURNKEEP_WRAP(void, _ZN4absl7debian35Mutex4LockEv, void* mutex) {
  __tsan_mutex_pre_lock(mutex, kWrite);
  __real__ZN4absl7debian35Mutex4LockEv(mutex);
  __tsan_mutex_post_lock(mutex, kWrite, 0);
}
TURNKEEP_WRAP(void, _ZN4absl7debian35Mutex6UnlockEv, void* mutex) {
  __tsan_mutex_pre_unlock(mutex, kWrite);
  __real__ZN4absl7debian35Mutex6UnlockEv(mutex);
  __tsan_mutex_post_unlock(mutex, kWrite);
}
TURNKEEP_WRAP(void, _ZN4absl7debian35Mutex10ReaderLockEv, void* mutex) {
  __tsan_mutex_pre_lock(mutex, kRead);
  __real__ZN4absl7debian35Mutex10ReaderLockEv(mutex);
  __tsan_mutex_post_lock(mutex, kRead, 0);
}
TURNKEEP_WRAP(void, _ZN4absl7debian35Mutex12ReaderUnlockEv, void* mutex) {
  __tsan_mutex_pre_unlock(mutex, kRead);
  __real__ZN4absl7debian35Mutex12ReaderUnlockEv(mutex);
  __tsan_mutex_post_unlock(mutex, kRead);
}
TURNKEEP_WRAP(void, _ZN4absl7debian35MutexD1Ev, void* mutex) {
  __tsan_mutex_destroy(mutex, __tsan_mutex_linker_init);
  __real__ZN4absl7debian35MutexD1Ev(mutex);
}
TURNKEEP_WRAP(void, _ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE, void* mutex,
              const absl::Condition& condition) {
  Divert(mutex, [&] {
    __real__ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE(mutex, condition);
    return true;
  });
}
TURNKEEP_WRAP(bool, _ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE,
              void* mutex, const absl::Condition& condition, absl::Time deadline) {
  return Divert(mutex, [&] {
    return __real__ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE(
        mutex, condition, deadline);
  });
}
TURNKEEP_WRAP(bool, _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE,
              void* mutex, const absl::Condition& condition, absl::Duration timeout) {
  return Divert(mutex, [&] {
    return __real__ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE(
        mutex, condition, timeout);
  });
}

TURNKEEP_WRAP(void, _ZN4absl7debian312Notification6NotifyEv, void* notification) {
  __tsan_release(notification);
  __real__ZN4absl7debian312Notification6NotifyEv(notification);
}
TURNKEEP_WRAP(void, _ZNK4absl7debian312Notification19WaitForNotificationEv, void* notification) {
  __real__ZNK4absl7debian312Notification19WaitForNotificationEv(notification);
  __tsan_acquire(notification);
}
TURNKEEP_WRAP(bool, _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE,
              void* notification, absl::Duration timeout) {
  const bool notified =
      __real__ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE(
          notification, timeout);
  __tsan_acquire(notification);
  return notified;
}
TURNKEEP_WRAP(bool, _ZN4absl7debian315BlockingCounter14DecrementCountEv, void* counter) {
  __tsan_release(counter);
  return __real__ZN4absl7debian315BlockingCounter14DecrementCountEv(counter);
}
TURNKEEP_WRAP(void, _ZN4absl7debian315BlockingCounter4WaitEv, void* counter) {
  __real__ZN4absl7debian315BlockingCounter4WaitEv(counter);
  __tsan_acquire(counter);
}

}  // extern "C"
