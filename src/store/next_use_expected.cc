// next_use's chunks whose next use somebody has told. They are members outside of the classes'
// lists, by that time or place in the queue.
#include <limits>

#include "store/next_use_policy.h"

namespace turnkeep {

void NextUsePolicy::Expect(ChunkIndex chunk, int64_t next_use) {
  State& state = At(chunk);
  bool member = links_.Contains(chunk);
  if (state.expected) member = expected_members_.erase({expected_[chunk], chunk}) > 0;
  const bool expected = next_use != kNoExpectedUse;
  if (expected && !state.expected) CountUse(chunk, state, now_ns_);
  if (member && state.expected != expected) {
    expected ? Unlink(state.use_class, chunk) : Push(state.use_class, chunk);
  }
  state.expected = expected;
  if (!expected) {
    expected_.erase(chunk);
    return;
  }
  expected_[chunk] = next_use;
  if (member) expected_members_.emplace(next_use, chunk);
}

float NextUsePolicy::ExpectedValue(int64_t next_use) const {
  if (next_use <= now_ns_) return std::numeric_limits<float>::infinity();
  return 1e9f / static_cast<float>(next_use - now_ns_);
}

}  // namespace turnkeep
