#include "store/policies.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "core/status.h"
#include "store/chunk_array.h"
#include "store/next_use_policy.h"

namespace turnkeep {

// ---- lru, fifo -------------------------------------------------------------------

void ListPolicy::Insert(ChunkIndex chunk, uint64_t, int64_t) {
  TK_CHECK(!links_.Contains(chunk));
  links_.PushNewest(list_, chunk);
}

void ListPolicy::Touch(ChunkIndex chunk, int64_t) {
  if (order_ == Order::kLru && links_.Contains(chunk)) links_.MoveToNewest(list_, chunk);
}

void ListPolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(links_.Contains(chunk));
  links_.Unlink(list_, chunk);
}

ChunkIndex ListPolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) {
  ChunkIndex chunk = list_.oldest;
  for (uint32_t shown = 0; chunk != kNoChunk && shown < limit; ++shown) {
    if (accept(chunk)) return chunk;
    chunk = links_.Newer(chunk);
  }
  return kNoChunk;
}

// ---- s3_fifo ---------------------------------------------------------------------

void S3FifoPolicy::Insert(ChunkIndex chunk, uint64_t, int64_t) {
  TK_CHECK(!links_.Contains(chunk));
  State& state = AtChunk(states_, chunk);
  state.uses = 0;
  state.in_main = state.ghost_until > left_small_;
  links_.PushNewest(state.in_main ? main_ : small_, chunk);
}

void S3FifoPolicy::Touch(ChunkIndex chunk, int64_t now_ns) {
  if (now_ns > 0 && links_.Contains(chunk) && states_[chunk].uses < 3) ++states_[chunk].uses;
}

void S3FifoPolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(links_.Contains(chunk));
  State& state = states_[chunk];
  links_.Unlink(state.in_main ? main_ : small_, chunk);
  state.ghost_until = state.in_main ? 0 : ++left_small_ + main_.count;
}

void S3FifoPolicy::Forget(ChunkIndex chunk) {
  TK_CHECK(!links_.Contains(chunk));
  if (chunk < states_.size()) states_[chunk] = State{};
}

ChunkIndex S3FifoPolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) {
  uint32_t refused = 0;
  // Every round shows a chunk, moves one to main or takes one of at most three uses.
  const uint64_t rounds = 5ull * (small_.count + main_.count) + 1;
  for (uint64_t round = 0; round < rounds && refused < limit; ++round) {
    const bool from_small =
        small_.count > 0 && (main_.count == 0 || small_.count * 10 >= small_.count + main_.count);
    ChunkLinks::List& list = from_small ? small_ : main_;
    const ChunkIndex chunk = list.oldest;
    if (chunk == kNoChunk) return kNoChunk;
    State& state = states_[chunk];
    if (from_small && state.uses > 1) {
      links_.Unlink(small_, chunk);
      links_.PushNewest(main_, chunk);
      state.in_main = true;
      state.uses = 0;
    } else if (!from_small && state.uses > 0) {
      --state.uses;
      links_.MoveToNewest(main_, chunk);
    } else if (accept(chunk)) {
      return chunk;
    } else {
      links_.MoveToNewest(list, chunk);
      ++refused;
    }
  }
  return kNoChunk;
}

// ---- heap ------------------------------------------------------------------------

ChunkHeap::Entry& ChunkHeap::At(ChunkIndex chunk) { return AtChunk(entries_, chunk); }

bool ChunkHeap::Before(ChunkIndex a, ChunkIndex b) const {
  const Entry& left = entries_[a];
  const Entry& right = entries_[b];
  return left.key != right.key ? left.key > right.key : left.touched < right.touched;
}

void ChunkHeap::Put(uint32_t place, ChunkIndex chunk) {
  heap_[place] = chunk;
  entries_[chunk].place = place;
}

void ChunkHeap::Sift(uint32_t place) {
  const ChunkIndex chunk = heap_[place];
  while (place > 0 && Before(chunk, heap_[(place - 1) / 2])) {
    Put(place, heap_[(place - 1) / 2]);
    place = (place - 1) / 2;
  }
  for (;;) {
    uint32_t child = 2 * place + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && Before(heap_[child + 1], heap_[child])) ++child;
    if (!Before(heap_[child], chunk)) break;
    Put(place, heap_[child]);
    place = child;
  }
  Put(place, chunk);
}

void ChunkHeap::Add(ChunkIndex chunk) {
  Entry& entry = At(chunk);
  entry.touched = ++touches_;
  entry.place = static_cast<uint32_t>(heap_.size());
  heap_.push_back(chunk);
  Sift(entry.place);
}

void ChunkHeap::Remove(ChunkIndex chunk) {
  const uint32_t place = entries_[chunk].place;
  const ChunkIndex last = heap_.back();
  heap_.pop_back();
  entries_[chunk].place = kNoPlace;
  if (last == chunk) return;
  Put(place, last);
  Sift(place);
}

void ChunkHeap::SetKey(ChunkIndex chunk, double key) {
  Entry& entry = At(chunk);
  if (entry.key == key) return;
  entry.key = key;
  if (entry.place != kNoPlace) Sift(entry.place);
}

void ChunkHeap::Touch(ChunkIndex chunk) {
  Entry& entry = entries_[chunk];
  entry.touched = ++touches_;
  Sift(entry.place);
}

ChunkIndex ChunkHeap::Find(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) const {
  if (heap_.empty()) return kNoChunk;
  if (accept(heap_[0])) return heap_[0];
  // Best first: the places whose parents were refused.
  std::vector<uint32_t> front;
  const auto later = [this](uint32_t a, uint32_t b) { return Before(heap_[b], heap_[a]); };
  const auto open = [&](uint32_t place) {
    for (uint32_t child = 2 * place + 1; child <= 2 * place + 2; ++child) {
      if (child >= heap_.size()) return;
      front.push_back(child);
      std::push_heap(front.begin(), front.end(), later);
    }
  };
  open(0);
  for (uint32_t shown = 1; shown < limit && !front.empty(); ++shown) {
    std::pop_heap(front.begin(), front.end(), later);
    const uint32_t place = front.back();
    front.pop_back();
    if (accept(heap_[place])) return heap_[place];
    open(place);
  }
  return kNoChunk;
}

// ---- look_ahead, belady ----------------------------------------------------------

void ExpectedUsePolicy::Insert(ChunkIndex chunk, uint64_t, int64_t) {
  TK_CHECK(!heap_.Contains(chunk));
  heap_.Add(chunk);
}

void ExpectedUsePolicy::Touch(ChunkIndex chunk, int64_t) {
  if (heap_.Contains(chunk)) heap_.Touch(chunk);
}

void ExpectedUsePolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(heap_.Contains(chunk));
  heap_.Remove(chunk);
}

void ExpectedUsePolicy::Expect(ChunkIndex chunk, int64_t next_use) {
  heap_.SetKey(chunk, next_use == kNoExpectedUse ? std::numeric_limits<double>::infinity()
                                                 : static_cast<double>(next_use));
}

ChunkIndex ExpectedUsePolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept,
                                         uint32_t limit) {
  return heap_.Find(accept, limit);
}

// ---- gdsf ------------------------------------------------------------------------

void GdsfPolicy::SetPriority(ChunkIndex chunk) {
  const State& state = states_[chunk];
  heap_.SetKey(chunk, -(clock_ + state.uses / (state.bytes * 1e-6 + 1e-9)));
}

void GdsfPolicy::Insert(ChunkIndex chunk, uint64_t bytes, int64_t) {
  TK_CHECK(!heap_.Contains(chunk));
  AtChunk(states_, chunk) = {.uses = 1, .bytes = static_cast<float>(bytes)};
  SetPriority(chunk);
  heap_.Add(chunk);
}

void GdsfPolicy::Touch(ChunkIndex chunk, int64_t now_ns) {
  if (!heap_.Contains(chunk)) return;
  if (now_ns > 0) ++states_[chunk].uses;
  heap_.Touch(chunk);
  SetPriority(chunk);
}

void GdsfPolicy::Remove(ChunkIndex chunk) {
  TK_CHECK(heap_.Contains(chunk));
  if (chunk == shown_) clock_ = std::max(clock_, -heap_.key(chunk));
  heap_.Remove(chunk);
}

ChunkIndex GdsfPolicy::FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) {
  shown_ = heap_.Find(accept, limit);
  return shown_;
}

// ---- by name ---------------------------------------------------------------------

std::vector<std::string_view> PolicyNames() {
  return {"lru", "fifo", "s3_fifo", "gdsf", "look_ahead", "next_use", "belady"};
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(std::string_view name) {
  if (name == "lru") return std::make_unique<ListPolicy>(ListPolicy::Order::kLru);
  if (name == "fifo") return std::make_unique<ListPolicy>(ListPolicy::Order::kFifo);
  if (name == "s3_fifo") return std::make_unique<S3FifoPolicy>();
  if (name == "gdsf") return std::make_unique<GdsfPolicy>();
  if (name == "look_ahead") return std::make_unique<ExpectedUsePolicy>("look_ahead");
  if (name == "belady") return std::make_unique<ExpectedUsePolicy>("belady");
  if (name == "next_use") return std::make_unique<NextUsePolicy>();
  return InvalidArgument("policy '{}' does not exist; there are: {}", std::string(name),
                         fmt::join(PolicyNames(), ", "));
}

}  // namespace turnkeep
