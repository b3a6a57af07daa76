// The placement state machine under random events by the million: no cap is ever passed, nothing
// pinned goes, every action is answered, and the same events give the same actions.
#include "store/placement.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "core/units.h"

namespace turnkeep {
namespace {

using Kind = PlacementEvent::Kind;
using Action = PlacementAction::Kind;

constexpr uint32_t kChunks = 600;

uint64_t NumberFrom(const char* variable, uint64_t otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// A store that does what the placement says, kept apart from the placement's own books.
class Simulation {
 public:
  Simulation(const PlacementOptions& options, uint64_t seed, std::string_view policy = "lru")
      : options_(options),
        random_(seed),
        looks_ahead_(policy == "look_ahead" || policy == "next_use"),
        predicts_(policy == "next_use"),
        placement_(options, *MakePolicy(policy), *MakePolicy(policy)),
        chunks_(kChunks) {
    for (Chunk& chunk : chunks_) chunk.bytes = kBlockBytes * (1 + random_() % 8);
  }

  // One random event, and the checks. False after a failure.
  bool Step() {
    now_ns_ += 1 + static_cast<int64_t>(random_() % (predicts_ ? 100'000'000 : 1000));
    const auto index = static_cast<ChunkIndex>(random_() % kChunks);
    Chunk& chunk = chunks_[index];
    switch (random_() % 20) {
      case 0:
      case 1:
      case 2:
        Fill(index);
        break;
      case 3:
      case 4:
        AnswerWrite(random_() % 8 != 0);
        break;
      case 5:
        Use(index);
        if (predicts_) EndTurn(index);
        break;
      case 6:
        if (chunk.in_host) Toggle(chunk.host_pinned, Kind::kHostPinned, Kind::kHostUnpinned, index);
        break;
      case 7:
        if (chunk.on_disk || chunk.disk_pinned)
          Toggle(chunk.disk_pinned, Kind::kDiskPinned, Kind::kDiskUnpinned, index);
        break;
      case 8:
        Pin(index);
        break;
      case 9:
        Toggle(chunk.held, Kind::kHeld, Kind::kUnheld, index);
        break;
      case 10:
        Send({.kind = Kind::kHostSpaceNeeded, .bytes = kBlockBytes * (1 + random_() % 16)});
        break;
      case 11:
        Send({.kind = Kind::kDiskSpaceNeeded, .bytes = kBlockBytes * (1 + random_() % 16)});
        break;
      case 12:
        Lose(index);
        break;
      case 13:
      case 14:
        Expect(index);
        break;
      case 15:
        AnswerPrefetch(random_() % 8 != 0);
        break;
      case 16:
        readers_ = 1 - readers_;
        Send({.kind = readers_ == 1 ? Kind::kDiskReadsBegin : Kind::kDiskReadsEnd});
        break;
      case 17:
        Keep(index, static_cast<int8_t>(static_cast<int>(random_() % 5) - 1));
        break;
      case 18:
        if (random_() % 8 == 0) Send({.kind = Kind::kDemoteWanted, .chunk = index});
        break;
      default:
        if (options_.disk_capacity_bytes > 0) Send({.kind = Kind::kWriteWanted, .chunk = index});
        break;
    }
    return Check();
  }

  // Answers what is under way, unpins, and asks for all of the memory back.
  bool Drain() {
    for (ChunkIndex i = 0; i < kChunks; ++i) {
      chunks_[i].next_use = kNoExpectedUse;
      Send({.kind = Kind::kExpected, .chunk = i});
    }
    while (!prefetching_.empty()) AnswerPrefetch(true);
    while (!writing_.empty()) AnswerWrite(true);
    for (ChunkIndex i = 0; i < kChunks; ++i) {
      Chunk& chunk = chunks_[i];
      if (chunk.host_pinned) Toggle(chunk.host_pinned, Kind::kHostPinned, Kind::kHostUnpinned, i);
      if (chunk.disk_pinned) Toggle(chunk.disk_pinned, Kind::kDiskPinned, Kind::kDiskUnpinned, i);
      if (chunk.pinned) Toggle(chunk.pinned, Kind::kPinned, Kind::kUnpinned, i);
      if (chunk.held) Toggle(chunk.held, Kind::kHeld, Kind::kUnheld, i);
    }
    for (int round = 0; round < 100 && placement_.host().chunk_count > 0; ++round) {
      Send({.kind = Kind::kHostSpaceNeeded, .bytes = placement_.host().used_bytes});
      while (!writing_.empty()) AnswerWrite(true);
    }
    EXPECT_EQ(placement_.host().chunk_count, 0u) << "not everything can leave the host tier";
    EXPECT_EQ(placement_.host().leaving_bytes, 0u);
    return Check();
  }

  const std::vector<std::string>& log() const { return log_; }
  const Placement& placement() const { return placement_; }
  uint64_t evictions() const { return evictions_; }
  uint64_t writes() const { return writes_; }
  uint64_t prefetches() const { return prefetches_; }

 private:
  struct Chunk {
    uint64_t bytes = 0;
    bool in_host = false, on_disk = false, writing = false;
    bool host_pinned = false, disk_pinned = false, pinned = false, held = false;
    bool prefetching = false;
    int64_t next_use = kNoExpectedUse;
    int8_t keep = kPolicyKeep;
  };

  void Send(PlacementEvent event) {
    event.now_ns = now_ns_;
    std::vector<PlacementAction> actions;
    placement_.Handle(event, &actions);
    Obey(actions);
  }

  void SendEach(Kind kind, const std::vector<ChunkIndex>& chunks) {
    std::vector<PlacementAction> actions;
    placement_.HandleEach({.kind = kind, .now_ns = now_ns_}, chunks, &actions);
    Obey(actions);
  }

  // One chunk, or a restore that begins or ends: a list of them is unpinned or pinned, and touched.
  void Use(ChunkIndex first) {
    if (random_() % 2 == 0) {
      chunks_[first].keep = std::max(chunks_[first].keep, kPolicyKeep);
      return Send({.kind = Kind::kTouched, .chunk = first});
    }
    const ChunkIndex end = std::min<ChunkIndex>(kChunks, first + 1 + random_() % 16);
    const bool begins = random_() % 3 == 0;
    std::vector<ChunkIndex> touched, toggled;
    for (ChunkIndex i = first; i < end; ++i) {
      touched.push_back(i);
      chunks_[i].keep = std::max(chunks_[i].keep, kPolicyKeep);
      if (!chunks_[i].in_host || chunks_[i].host_pinned == begins) continue;
      chunks_[i].host_pinned = begins;
      toggled.push_back(i);
    }
    SendEach(begins ? Kind::kHostPinned : Kind::kHostUnpinned, toggled);
    SendEach(Kind::kTouched, touched);
  }

  void Obey(const std::vector<PlacementAction>& actions) {
    std::vector<ChunkIndex> made_room;  // for the prefetch that follows
    for (const PlacementAction& action : actions) {
      if (action.reason == PlacementAction::Reason::kPrefetch) made_room.push_back(action.chunk);
      if (action.kind == Action::kPrefetch) {
        for (const ChunkIndex victim : made_room) {
          const int64_t next_use = chunks_[action.chunk].next_use;
          EXPECT_TRUE(chunks_[victim].next_use > next_use ||
                      (predicts_ && chunks_[victim].next_use == kNoExpectedUse))
              << "a prefetch evicted what is needed sooner";
          EXPECT_LE(chunks_[victim].keep, kPolicyKeep) << "a prefetch evicted what is retained";
        }
        made_room.clear();
      }
      Obey(action);
    }
  }

  // Nothing that a job in the queue waits for leaves the host tier while something else may, and
  // nothing that is retained while something of a lower priority may.
  void CheckOrder(const PlacementAction& action) {
    if (action.reason != PlacementAction::Reason::kWatermark) return;
    const Chunk& gone = chunks_[action.chunk];
    const bool waited_for =
        looks_ahead_ && gone.keep == kPolicyKeep && gone.next_use != kNoExpectedUse;
    for (ChunkIndex i = 0; i < kChunks; ++i) {
      const Chunk& chunk = chunks_[i];
      const bool may_go = chunk.in_host && !chunk.pinned && !chunk.host_pinned && !chunk.writing &&
                          !chunk.held && i != action.chunk;
      EXPECT_FALSE(may_go && chunk.keep < gone.keep)
          << "chunk " << action.chunk << " went, " << i << " of a lower priority stayed";
      EXPECT_FALSE(waited_for && may_go && chunk.keep == kPolicyKeep &&
                   chunk.next_use == kNoExpectedUse)
          << "chunk " << action.chunk << " of the queue went, " << i << " stayed";
    }
  }

  void Keep(ChunkIndex index, int8_t keep) {
    Chunk& chunk = chunks_[index];
    Send({.kind = Kind::kKeep, .chunk = index, .keep = keep});
    if (keep != kDropSoonKeep || chunk.in_host || chunk.on_disk) chunk.keep = keep;
  }
  // With its last copy goes that it was to be dropped.
  void ForgetDropSoon(Chunk& chunk) {
    if (!chunk.in_host && !chunk.on_disk && chunk.keep == kDropSoonKeep) chunk.keep = kPolicyKeep;
  }

  void Obey(const PlacementAction& action) {
    Chunk& chunk = chunks_[action.chunk];
    log_.push_back(fmt::format("{}:{}:{}", static_cast<int>(action.kind), action.chunk,
                               static_cast<int>(action.reason)));
    switch (action.kind) {
      case Action::kPrefetch:
        EXPECT_TRUE(chunk.on_disk && !chunk.in_host && !chunk.prefetching);
        EXPECT_EQ(readers_, 0) << "a prefetch began beside a restore's reads";
        chunk.prefetching = true;
        host_bytes_ += chunk.bytes;
        prefetching_.push_back(action.chunk);
        ++prefetches_;
        break;
      case Action::kCancelPrefetch:
        EXPECT_TRUE(chunk.prefetching);
        break;
      case Action::kWriteToDisk:
        EXPECT_TRUE(chunk.in_host)
            << "a write of chunk " << action.chunk << ", which is not in host";
        EXPECT_FALSE(chunk.on_disk || chunk.writing);
        chunk.writing = true;
        writing_.push_back(action.chunk);
        ++writes_;
        break;
      case Action::kEvictHost:
        EXPECT_TRUE(chunk.in_host);
        EXPECT_FALSE(chunk.host_pinned) << "evicted while a restore reads it";
        EXPECT_FALSE(chunk.pinned) << "evicted though pinned";
        EXPECT_FALSE(chunk.held && !chunk.on_disk) << "the last copy of what a save relies on";
        CheckOrder(action);
        chunk.in_host = false;
        host_bytes_ -= chunk.bytes;
        ++evictions_;
        ForgetDropSoon(chunk);
        break;
      case Action::kEvictDisk:
        EXPECT_FALSE(chunk.prefetching) << "evicted while a prefetch reads it";
        EXPECT_TRUE(chunk.on_disk);
        EXPECT_FALSE(chunk.disk_pinned) << "evicted while it is read";
        EXPECT_FALSE(chunk.pinned) << "evicted though pinned";
        EXPECT_FALSE(chunk.held && !chunk.in_host) << "the last copy of what a save relies on";
        chunk.on_disk = false;
        disk_bytes_ -= chunk.bytes;
        ++evictions_;
        ForgetDropSoon(chunk);
        break;
    }
  }

  // As the store does it: a slot is had only when the arena, here the cap, has room.
  void Fill(ChunkIndex index) {
    Chunk& chunk = chunks_[index];
    if (chunk.in_host || chunk.prefetching) return;
    for (int round = 0; host_bytes_ + chunk.bytes > options_.host_capacity_bytes; ++round) {
      if (round == 4) return;
      Send({.kind = Kind::kHostSpaceNeeded, .bytes = chunk.bytes});
    }
    host_bytes_ += chunk.bytes;
    Send({.kind = Kind::kHostReserved, .bytes = chunk.bytes});
    if (random_() % 16 == 0) {  // abandoned
      host_bytes_ -= chunk.bytes;
      return Send({.kind = Kind::kHostUnreserved, .bytes = chunk.bytes});
    }
    chunk.in_host = true;
    Send({.kind = Kind::kHostFilled, .chunk = index, .bytes = chunk.bytes});
  }

  void AnswerWrite(bool well) {
    if (writing_.empty()) return;
    const size_t which = random_() % writing_.size();
    const ChunkIndex index = writing_[which];
    writing_.erase(writing_.begin() + static_cast<int64_t>(which));
    Chunk& chunk = chunks_[index];
    chunk.writing = false;
    if (well) {
      chunk.on_disk = true;
      disk_bytes_ += chunk.bytes;
    }
    Send({.kind = well ? Kind::kDiskWritten : Kind::kDiskWriteFailed, .chunk = index});
  }

  void AnswerPrefetch(bool well) {
    if (prefetching_.empty()) return;
    const size_t which = random_() % prefetching_.size();
    const ChunkIndex index = prefetching_[which];
    prefetching_.erase(prefetching_.begin() + static_cast<int64_t>(which));
    Chunk& chunk = chunks_[index];
    chunk.prefetching = false;
    if (well && chunk.on_disk) {
      chunk.in_host = true;
      return Send({.kind = Kind::kHostFilled, .chunk = index, .bytes = chunk.bytes});
    }
    host_bytes_ -= chunk.bytes;
    Send({.kind = Kind::kHostUnreserved, .bytes = chunk.bytes});
    Send({.kind = Kind::kPrefetchFailed, .chunk = index});
  }

  void EndTurn(ChunkIndex index) {
    const TurnInfo turn = {.stop = static_cast<StopReason>(index % kStopReasons),
                           .next = index / 2};
    Send({.kind = Kind::kTurnEnded, .chunk = index, .turn = turn});
    Send({.kind = Kind::kTick});
  }

  void Expect(ChunkIndex index) {
    Chunk& chunk = chunks_[index];
    chunk.next_use = random_() % 3 == 0 ? kNoExpectedUse : static_cast<int64_t>(random_() % 100);
    Send({.kind = Kind::kExpected, .chunk = index, .next_use = chunk.next_use});
    if (chunk.next_use != kNoExpectedUse) chunk.keep = std::max(chunk.keep, kPolicyKeep);
  }

  void Toggle(bool& flag, Kind on, Kind off, ChunkIndex index) {
    flag = !flag;
    Send({.kind = flag ? on : off, .chunk = index});
  }

  void Pin(ChunkIndex index) {
    Chunk& chunk = chunks_[index];
    const bool may = placement_.MayPin(Tier::kHost, chunk.in_host ? chunk.bytes : 0) &&
                     placement_.MayPin(Tier::kDisk, chunk.on_disk ? chunk.bytes : 0);
    if (!chunk.pinned && !may) return;
    Toggle(chunk.pinned, Kind::kPinned, Kind::kUnpinned, index);
  }

  // Damage, or the last session that referred to it is gone.
  void Lose(ChunkIndex index) {
    Chunk& chunk = chunks_[index];
    if (random_() % 2 == 0) {
      if (chunk.host_pinned || chunk.writing || !chunk.in_host) return;
      chunk.in_host = false;
      host_bytes_ -= chunk.bytes;
      Send({.kind = Kind::kHostLost, .chunk = index});
      ForgetDropSoon(chunk);
    } else if (chunk.on_disk && !chunk.disk_pinned) {
      chunk.on_disk = false;
      disk_bytes_ -= chunk.bytes;
      Send({.kind = Kind::kDiskLost, .chunk = index});
      ForgetDropSoon(chunk);
    }
    const bool used = chunk.in_host || chunk.on_disk || chunk.writing || chunk.prefetching;
    if (!used) Send({.kind = Kind::kForgotten, .chunk = index});
  }

  bool Check() {
    uint64_t writing_bytes = 0;
    for (const ChunkIndex index : writing_) writing_bytes += chunks_[index].bytes;
    EXPECT_EQ(placement_.host().used_bytes, host_bytes_);
    EXPECT_EQ(placement_.disk().used_bytes, disk_bytes_ + writing_bytes);
    EXPECT_LE(placement_.host().used_bytes, options_.host_capacity_bytes);
    EXPECT_LE(placement_.disk().used_bytes, options_.disk_capacity_bytes);
    EXPECT_LE(placement_.host().leaving_bytes, placement_.host().used_bytes);
    const Placement::PrefetchUsage prefetch = placement_.prefetch();
    EXPECT_LE(prefetch.in_flight_bytes + prefetch.unused_bytes, options_.prefetch_bytes);
    EXPECT_EQ(prefetch.begun, prefetches_);
    uint64_t prefetching_bytes = 0;
    for (const ChunkIndex index : prefetching_) prefetching_bytes += chunks_[index].bytes;
    EXPECT_EQ(prefetch.in_flight_bytes, prefetching_bytes);
    return !::testing::Test::HasFailure();
  }

  const PlacementOptions options_;
  std::mt19937_64 random_;
  const bool looks_ahead_, predicts_;
  Placement placement_;
  std::vector<Chunk> chunks_;
  std::vector<ChunkIndex> writing_;
  std::vector<ChunkIndex> prefetching_;
  std::vector<std::string> log_;
  uint64_t host_bytes_ = 0, disk_bytes_ = 0;
  uint64_t evictions_ = 0, writes_ = 0, prefetches_ = 0;
  int readers_ = 0;
  int64_t now_ns_ = 0;
};

std::vector<PlacementOptions> AllOptions() {
  const uint64_t host = 300 * kBlockBytes;
  return {{.host_capacity_bytes = host,
           .disk_capacity_bytes = 900 * kBlockBytes,
           .prefetch_bytes = 60 * kBlockBytes},
          {.host_capacity_bytes = host,
           .disk_capacity_bytes = 2000 * kBlockBytes,
           .write_through = true,
           .prefetch_bytes = host,
           .prefetch_in_flight_bytes = 20 * kBlockBytes},
          {.host_capacity_bytes = host},
          {.host_capacity_bytes = host, .disk_capacity_bytes = 900 * kBlockBytes},
          {.host_capacity_bytes = host,
           .disk_capacity_bytes = 900 * kBlockBytes,
           .write_through = true},
          {.host_capacity_bytes = host,
           .disk_capacity_bytes = 100 * kBlockBytes,
           .write_through = true},
          {.host_capacity_bytes = host, .disk_capacity_bytes = 4 * kBlockBytes},
          {.host_capacity_bytes = host,
           .disk_capacity_bytes = 900 * kBlockBytes,
           .high_watermark = 1,
           .low_watermark = 1}};
}

TEST(PlacementSimulation, RandomEventsNeverBreakAPromise) {
  uint64_t next_seed = NumberFrom("TURNKEEP_SEED", 1);
  for (const PlacementOptions& options : AllOptions()) {
    const uint64_t seed = next_seed++ * 1000;
    const bool lru = seed / 1000 % 2 == 0;
    // look_ahead keeps a heap, in which what is refused is searched through.
    const uint64_t steps = NumberFrom("TURNKEEP_STEPS", lru ? 300'000 : 100'000);
    SCOPED_TRACE(fmt::format("TURNKEEP_SEED of this run: {}, disk {} blocks, write through {}",
                             seed, options.disk_capacity_bytes / kBlockBytes,
                             options.write_through));
    Simulation simulation(options, seed, lru ? "lru" : "look_ahead");
    for (uint64_t step = 0; step < steps; ++step) {
      if (!simulation.Step()) {
        ADD_FAILURE() << "at step " << step;
        return;
      }
    }
    EXPECT_TRUE(simulation.Drain());
    EXPECT_GT(simulation.evictions(), steps / 400);
    if (options.disk_capacity_bytes > 0) {
      EXPECT_GT(simulation.writes(), 0u);
    }
    EXPECT_EQ(simulation.prefetches() > 100, options.prefetch_bytes > 0);
  }
}

TEST(PlacementSimulation, PredictedPrefetchesBreakNoPromise) {
  const uint64_t seed = NumberFrom("TURNKEEP_SEED", 1) * 1000 + 7;
  for (const PlacementOptions& options : AllOptions()) {
    if (options.prefetch_bytes == 0) continue;
    Simulation simulation(options, seed, "next_use");
    for (int step = 0; step < 50'000; ++step) ASSERT_TRUE(simulation.Step()) << step << " " << seed;
    EXPECT_TRUE(simulation.Drain());
    EXPECT_GT(simulation.prefetches(), 100u);
  }
}

TEST(PlacementSimulation, TheSameEventsGiveTheSameActions) {
  const std::string_view policies[] = {"lru", "fifo", "s3_fifo", "gdsf", "look_ahead", "next_use"};
  uint64_t turn = 0;
  for (const PlacementOptions& options : AllOptions()) {
    const std::string_view policy = policies[turn++ % std::size(policies)];
    SCOPED_TRACE(policy);
    Simulation one(options, 42, policy);
    Simulation two(options, 42, policy);
    for (int step = 0; step < 20'000; ++step) {
      ASSERT_TRUE(one.Step());
      ASSERT_TRUE(two.Step());
    }
    EXPECT_EQ(one.log(), two.log());
    EXPECT_FALSE(one.log().empty());
  }
}

TEST(PlacementList, IsTouchedInItsOrder) {
  Placement placement({.host_capacity_bytes = 4 * kBlockBytes, .high_watermark = 1.0},
                      *MakePolicy("lru"), *MakePolicy("lru"));
  std::vector<PlacementAction> actions;
  for (ChunkIndex chunk = 0; chunk < 4; ++chunk) {
    placement.Handle({.kind = Kind::kHostReserved, .bytes = kBlockBytes}, &actions);
    placement.Handle({.kind = Kind::kHostFilled, .chunk = chunk, .bytes = kBlockBytes}, &actions);
  }
  const std::vector<ChunkIndex> touched = {2, 0, 1};
  placement.HandleEach({.kind = Kind::kTouched, .now_ns = 1}, touched, &actions);
  ASSERT_TRUE(actions.empty());
  placement.Handle({.kind = Kind::kHostSpaceNeeded, .bytes = 4 * kBlockBytes}, &actions);
  std::vector<ChunkIndex> gone;
  for (const PlacementAction& action : actions) gone.push_back(action.chunk);
  EXPECT_EQ(gone, (std::vector<ChunkIndex>{3, 2, 0, 1}));
}

}  // namespace
}  // namespace turnkeep
