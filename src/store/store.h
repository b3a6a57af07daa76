// The embedded store: sessions, chunks, the host and disk tiers, and the placement
// that moves chunks between them. The daemon is this class behind a socket.
//
// Thread-safe. Calls take the store's one lock for bounded, I/O-free work; I/O runs on
// the tiers' threads.
//
//   TK_ASSIGN_OR_RETURN(auto store, Store::Open({.data_dir = "/var/lib/turnkeep"}));
//   TK_ASSIGN_OR_RETURN(auto kv, store->ForTenant("default"));
//   … kv->BeginSave(…), see core/kv_store.h
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include "core/clock.h"
#include "core/kv_store.h"
#include "core/units.h"
#include "store/operations.h"

namespace turnkeep {

class BlockDevice;
class Index;

// When Commit returns.
enum class Durability : uint8_t {
  kNone = 0,  // in host memory; on disk when demoted or at shutdown
  kWrite,     // handed to the disk and the index: survives the death of the process
  kSync,      // synced: survives the loss of power
};
std::string_view NameOf(Durability durability);
absl::StatusOr<Durability> DurabilityFromName(std::string_view name);

struct StoreOptions {
  std::string data_dir;  // empty: no disk tier, nothing survives the process
  uint64_t host_bytes = 4 * kGiB;
  uint64_t disk_bytes = 64 * kGiB;  // of extent files
  uint64_t host_segment_bytes = 64 * kMiB;
  uint64_t extent_file_bytes = 256 * kMiB;
  bool huge_pages = false;
  bool direct_io = true;
  bool io_uring = true;
  uint32_t io_depth = 32;
  uint64_t disk_write_bytes_per_day = 0;  // 0: no budget
  Durability durability = Durability::kWrite;
  std::string policy = "lru";
  // Eviction of a tier starts above `high` and stops below `low`, as shares of its capacity.
  double high_watermark = 0.95;
  double low_watermark = 0.90;
  double max_pinned_share = 0.5;
  // What hints may bring from disk ahead of its use: share of the host tier, and a budget (0:
  // none).
  double prefetch_share = 0.25;
  uint64_t prefetch_bytes_per_second = 0;
  uint32_t max_sessions = kMaxSessions;
  absl::Duration default_ttl = absl::InfiniteDuration();
  Clock* clock = Clock::System();

  // For tests: used instead of what data_dir would open.
  std::function<std::unique_ptr<BlockDevice>(std::unique_ptr<BlockDevice>)> wrap_device;
  std::function<std::unique_ptr<Index>(std::unique_ptr<Index>)> wrap_index;
};

using TenantNumber = uint32_t;

// A host segment as a client maps it.
struct SegmentGrant {
  uint32_t segment = 0;
  TenantNumber tenant = 0;
  uint64_t segment_bytes = 0;
  uint64_t slot_bytes = 0;
  int fd = -1;  // borrowed: valid while a ticket with a slot in the segment lives
};

class Store {
 public:
  // FailedPrecondition: another process has data_dir open, or its format is newer.
  // InvalidArgument names the option.
  static absl::StatusOr<std::unique_ptr<Store>> Open(StoreOptions options);
  // Without Close, everything the durability does not promise is lost.
  virtual ~Store() = default;

  // Refuses new work with Unavailable, writes what is only in host memory to disk (as
  // far as the disk's cap and `deadline` allow), and closes the index. Blocks.
  virtual absl::Status Close(absl::Duration deadline) = 0;

  // The number of the tenant, created with a fresh key when it is new.
  virtual absl::StatusOr<TenantNumber> OpenTenant(const std::string& name) = 0;
  // The embedded interface for one tenant; must be destroyed before the store.
  virtual absl::StatusOr<std::unique_ptr<KvStore>> ForTenant(const std::string& name) = 0;

  // The asynchronous core under the embedded tickets and the server. `done` may be
  // called before the call returns. Waiting for room (SaveRequest::space_deadline) does
  // not block the caller.
  virtual void BeginSave(
      TenantNumber tenant, const SaveRequest& request,
      std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)> done) = 0;
  virtual void BeginImport(
      TenantNumber tenant, const ImportRequest& request,
      std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)> done) = 0;
  // May read one block from disk when the context leaves a stored one inside a chunk
  // that is only there. A miss is an operation without spans. Where only writes to disk that are
  // under way make room for what is to be read, `done` is called when they have, or at the
  // request's deadline with what has room by then; never does it wait for another ticket. While it
  // waits, `abandoned` (may be null; called under the store's lock) is asked now and then whether
  // anybody still wants it.
  using RestoreDone = std::function<void(absl::StatusOr<std::unique_ptr<RestoreOperation>>)>;
  virtual void BeginRestore(TenantNumber tenant, const RestoreRequest& request, RestoreDone done,
                            std::function<bool()> abandoned) = 0;

  // As KvStore::Verify. It ends with Unavailable soon after `cancelled` (may be null; asked between
  // two chunks, on the calling thread) says so, or the store closes; what a repair has dropped by
  // then stays dropped.
  virtual absl::StatusOr<VerifyReport> Verify(
      TenantNumber tenant, const VerifyRequest& request,
      const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress,
      const std::function<bool()>& cancelled) = 0;

  // Where an engine's process reports its page pool; must be destroyed before the store. `name`
  // and `pid` are what Explain shows.
  virtual std::unique_ptr<GpuEngine> OpenGpuEngine(TenantNumber tenant, std::string name,
                                                   int64_t pid) = 0;

  // How a client maps the slots of its tickets.
  virtual absl::StatusOr<SegmentGrant> Segment(uint32_t segment) = 0;
  // Called with the number of every segment that is given up, from then on. The
  // observer must not call the store. One observer at most; null removes it.
  virtual void ObserveReleasedSegments(std::function<void(uint32_t segment)> observer) = 0;

  // Everything, over all tenants.
  virtual StoreStatus GetStatus() = 0;
  virtual Activity GetActivity(TenantNumber tenant, const ActivityRequest& request) = 0;
  virtual std::vector<SessionInfo> ListAllSessions(TenantNumber tenant,
                                                   const ListRequest& request) = 0;
  virtual std::vector<std::string> ListTenants() = 0;
};

}  // namespace turnkeep
