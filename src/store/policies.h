// The policies behind MakePolicy, but for next_use, which is larger (next_use_policy.h). Internal
// to src/store.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "store/chunk_list.h"
#include "store/policy.h"

namespace turnkeep {

// lru, and fifo, which is lru that no use moves. Eight bytes a chunk.
class ListPolicy final : public EvictionPolicy {
 public:
  enum class Order : uint8_t { kLru, kFifo };
  explicit ListPolicy(Order order) : order_(order) {}

  std::string_view name() const override { return order_ == Order::kLru ? "lru" : "fifo"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

 private:
  const Order order_;
  ChunkLinks links_;
  ChunkLinks::List list_;
};

// S3-FIFO: newcomers pass through a small queue of a tenth of the chunks. What was used twice there
// goes on to the main queue, the rest leaves and is remembered by a ghost as long as the main queue
// is; who comes back out of the ghost enters the main queue. Main gives a chunk another round for
// every use, three at most. 20 bytes a chunk.
class S3FifoPolicy final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "s3_fifo"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  void Forget(ChunkIndex chunk) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

 private:
  struct State {
    uint64_t ghost_until = 0;  // of left_small_
    uint8_t uses = 0;          // since it came or was given a round; at most 3
    bool in_main = false;
  };
  ChunkLinks links_;
  ChunkLinks::List small_, main_;
  std::vector<State> states_;
  uint64_t left_small_ = 0;
};

// A binary heap of chunks by key with their places, for policies that order by a number. The
// largest key is the first to go. Ties: the one touched longer ago. 24 bytes a chunk.
class ChunkHeap {
 public:
  bool Contains(ChunkIndex chunk) const {
    return chunk < entries_.size() && entries_[chunk].place != kNoPlace;
  }
  // The key of a chunk, member or not; `initial` of one that was never given any.
  double key(ChunkIndex chunk) const {
    return chunk < entries_.size() ? entries_[chunk].key : kInitialKey;
  }
  void Add(ChunkIndex chunk);
  void Remove(ChunkIndex chunk);
  void SetKey(ChunkIndex chunk, double key);
  // Makes it the last touched.
  void Touch(ChunkIndex chunk);
  // As EvictionPolicy::FindVictim.
  ChunkIndex Find(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) const;

 private:
  static constexpr uint32_t kNoPlace = 0xFFFFFFFFu;
  static constexpr double kInitialKey = std::numeric_limits<double>::infinity();
  struct Entry {
    double key = kInitialKey;
    uint64_t touched = 0;
    uint32_t place = kNoPlace;
  };

  Entry& At(ChunkIndex chunk);
  bool Before(ChunkIndex a, ChunkIndex b) const;
  void Sift(uint32_t place);
  void Put(uint32_t place, ChunkIndex chunk);

  std::vector<Entry> entries_;
  std::vector<ChunkIndex> heap_;
  uint64_t touches_ = 0;
};

// look_ahead and belady: the furthest expected use goes first, those of whom none is expected
// before all others, least recently used first. The difference is who tells: the queue of waiting
// jobs within its window, or the trace itself.
class ExpectedUsePolicy final : public EvictionPolicy {
 public:
  explicit ExpectedUsePolicy(std::string_view name) : name_(name) {}
  std::string_view name() const override { return name_; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  void Expect(ChunkIndex chunk, int64_t next_use) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

 private:
  const std::string_view name_;
  ChunkHeap heap_;
};

// GDSF: priority = clock + uses ÷ megabytes; the lowest goes, and the clock moves up to it. 32
// bytes a chunk.
class GdsfPolicy final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "gdsf"; }
  void Insert(ChunkIndex chunk, uint64_t bytes, int64_t now_ns) override;
  void Touch(ChunkIndex chunk, int64_t now_ns) override;
  void Remove(ChunkIndex chunk) override;
  ChunkIndex FindVictim(const std::function<bool(ChunkIndex)>& accept, uint32_t limit) override;

 private:
  void SetPriority(ChunkIndex chunk);

  struct State {
    uint32_t uses = 0;
    float bytes = 0;
  };
  ChunkHeap heap_;  // by the negative priority
  std::vector<State> states_;
  double clock_ = 0;
  ChunkIndex shown_ = kNoChunk;  // the last victim found
};

}  // namespace turnkeep
