// absl::Mutex and what belongs to it over the standard library, for the thread sanitizer's build
// only (see cmake/TurnkeepTargets.cmake): Debian's Abseil is compiled without the sanitizer, which
// therefore sees neither its locks nor the order they make. As much of the interface as Turnkeep
// uses, with the same meaning; conditions are looked at by those who wait for them.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <shared_mutex>

#include <absl/base/thread_annotations.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>

namespace absl {

class Condition {
 public:
  template <typename T>
  Condition(bool (*function)(T*), T* argument)
      : call_([](const Condition& c) {
          return reinterpret_cast<bool (*)(T*)>(c.function_)(static_cast<T*>(c.argument_));
        }),
        function_(reinterpret_cast<void (*)()>(function)),
        argument_(const_cast<void*>(static_cast<const void*>(argument))) {}

  template <typename T>
  Condition(T* object, bool (T::*method)()) : Condition(MethodOf(object, method)) {}
  template <typename T>
  Condition(const T* object, bool (T::*method)() const) : Condition(MethodOf(object, method)) {}

  explicit Condition(const bool* flag)
      : call_([](const Condition& c) { return *static_cast<const bool*>(c.argument_); }),
        argument_(const_cast<bool*>(flag)) {}

  template <typename T, bool (T::*)() const = &T::operator()>
  explicit Condition(const T* functor)
      : call_([](const Condition& c) { return (*static_cast<const T*>(c.argument_))(); }),
        argument_(const_cast<T*>(functor)) {}

  bool Eval() const { return call_(*this); }

 private:
  // Room for a pointer to a member function, which has no common type.
  struct Method {
    alignas(void*) unsigned char bytes[16];
  };

  template <typename T, typename Pointer>
  static Condition MethodOf(T* object, Pointer method) {
    static_assert(sizeof(Pointer) <= sizeof(Method));
    Condition condition;
    new (condition.method_.bytes) Pointer(method);
    condition.argument_ = const_cast<void*>(static_cast<const void*>(object));
    condition.call_ = [](const Condition& c) {
      return (static_cast<T*>(c.argument_)->**reinterpret_cast<const Pointer*>(c.method_.bytes))();
    };
    return condition;
  }

  Condition() = default;

  bool (*call_)(const Condition&) = nullptr;
  void (*function_)() = nullptr;
  void* argument_ = nullptr;
  Method method_;
};

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    const bool wake = waiting_ > 0;
    // While the lock is held: whoever gets it next may destroy this.
    if (wake) changed_.notify_all();
    mutex_.unlock();
  }
  void ReaderLock() ABSL_SHARED_LOCK_FUNCTION() { mutex_.lock(); }
  void ReaderUnlock() ABSL_UNLOCK_FUNCTION() { Unlock(); }
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}
  void AssertReaderHeld() const ABSL_ASSERT_SHARED_LOCK() {}

  void Await(const Condition& condition) { AwaitWithDeadline(condition, InfiniteFuture()); }
  bool AwaitWithTimeout(const Condition& condition, Duration timeout) {
    return AwaitWithDeadline(condition, Now() + timeout);
  }
  bool AwaitWithDeadline(const Condition& condition, Time deadline) {
    if (condition.Eval()) return true;
    // What was changed before the wait may be what others wait for.
    if (waiting_ > 0) changed_.notify_all();
    ++waiting_;
    std::unique_lock<std::mutex> lock(mutex_, std::adopt_lock);
    bool met = false;
    while (!(met = condition.Eval()) && Now() < deadline) {
      if (deadline == InfiniteFuture()) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, ToChronoTime(deadline));
      }
    }
    lock.release();
    --waiting_;
    return met;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  MutexLock(Mutex* mutex, const Condition& condition) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->Lock();
    mutex_->Await(condition);
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

using ReaderMutexLock = MutexLock;

enum class OnDeadlockCycle { kIgnore, kReport, kAbort };
inline void SetMutexDeadlockDetectionMode(OnDeadlockCycle) {}

}  // namespace absl
