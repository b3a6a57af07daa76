// The client's side of a running save and a running restore. Internal to src/api.
//
// Over shared memory the tickets work on the daemon's slots with core/slot_access.h, as the
// embedded tickets do; over TCP they hold copies, and move them in pieces.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <absl/base/thread_annotations.h>
#include <absl/container/flat_hash_map.h>
#include <absl/status/statusor.h>
#include <absl/synchronization/mutex.h>

#include "api/client_connection.h"
#include "api/wire_plan.h"
#include "core/kv_store.h"
#include "core/layout.h"

namespace turnkeep {

// A layout and the geometries of its chunks, computed once each. Thread-safe. Shared by the
// client and by tickets.
class ClientLayout {
 public:
  explicit ClientLayout(KvLayout layout) : layout_(std::move(layout)) {}
  const KvLayout& layout() const { return layout_; }
  uint32_t layer_count() const { return static_cast<uint32_t>(layout_.layers.size()); }
  // `token_count` in 1..chunk_tokens. The reference stays valid.
  const ChunkGeometry& Geometry(uint32_t token_count) const;

 private:
  const KvLayout layout_;
  mutable absl::Mutex mutex_;
  mutable absl::flat_hash_map<uint32_t, std::unique_ptr<const ChunkGeometry>> geometries_
      ABSL_GUARDED_BY(mutex_);
};

// Page bytes go in pieces of at most this over TCP.
inline constexpr uint64_t kPagePieceBytes = 1 * kMiB;

// Makes the ticket of a plan. The daemon's numbers are checked: Internal when they contradict
// the layout or the granted segments.
absl::StatusOr<std::unique_ptr<SaveTicket>> MakeSaveTicket(
    std::shared_ptr<ClientConnection> connection, std::shared_ptr<const ClientLayout> layout,
    uint64_t ticket, const wire::Frame& plan);

struct RestoreTicketParts {
  std::shared_ptr<ClientConnection> connection;
  std::shared_ptr<const ClientLayout> layout;
  uint64_t ticket = 0;
  std::shared_ptr<RestoreState> state;  // known to the connection
  absl::Time deadline;                  // of the request
};
absl::StatusOr<std::unique_ptr<RestoreTicket>> MakeRestoreTicket(RestoreTicketParts parts,
                                                                 const wire::Frame& plan);

}  // namespace turnkeep
