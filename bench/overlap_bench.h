// What `turnkeep bench overlap` measures: restore and save of a context inside a layered compute
// loop. On the host device the store, digests, gather and scatter are real and the link has the
// bandwidth that is asked for; on CUDA the link and the copies are real too. A layer's compute is a
// kernel that takes the time asked for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpu_tier/device.h"
#include "gpu_tier/layer_mover.h"
#include "gpu_tier/page_mover_planes.h"

namespace turnkeep::bench {

struct OverlapOptions {
  uint32_t layers = 32;
  uint64_t tokens = 1024;      // restored, 4 KiB each in a layer
  double balanced_load = 0.9;  // load time ÷ compute time of the loop where loading is not slower
  double slow_load = 2.5;      // … and of the one where it is
  uint32_t rounds = 5;         // medians are over these
  std::function<void(const std::string& what, uint64_t done, uint64_t total)> progress =
      [](const std::string&, uint64_t, uint64_t) {};
};

struct OverlapRow {
  std::string name;      // "balanced" or "slow"
  std::string mode;      // "none", "overlap", "buffer"
  double load_s = 0;     // the restore alone
  double compute_s = 0;  // the loop alone
  double total_s = 0;    // from the job's start to its end
  double stall_s = 0;    // measured between events on the compute stream; 0 for "none"
  double predicted_stall_s = 0;
  uint64_t buffer_bytes = 0;
};

struct OverlapResult {
  std::string device;
  bool cuda = false;
  uint64_t bytes = 0;  // of the context
  uint64_t layer_bytes = 0;
  std::vector<OverlapRow> rows;
  double stall_share = 0;               // of compute; balanced, without a head start
  double stall_share_predicted = 0;     // the same by PredictStallSeconds
  double stall_share_buffered = 0;      // balanced, with two layers loaded before
  double slow_load_ratio = 0;           // total ÷ max(load, compute), slow, without a head start
  uint64_t buffer_bytes_predicted = 0;  // slow, the paper's formula
  uint64_t buffer_bytes_measured = 0;   // smallest, in whole layers, with a stall ≤ 2% of compute
  double save_sync_s = 0;               // that a save adds to two jobs when the engine waits for it
  double save_async_s = 0;              // … when it overlaps
  double async_save_hidden_share = 0;
};

// Where the loop runs.
struct OverlapDevice {
  std::unique_ptr<Device> device;
  // A kernel of so many seconds.
  std::function<absl::Status(DeviceStream& stream, double seconds)> compute;
  std::function<absl::StatusOr<std::unique_ptr<LayerMover>>(PageMoverOptions)> make_mover;
  double link_bytes_per_s = 0;  // host to device
  // Copies are asynchronous from and to registered host memory only.
  bool registers_memory = false;
};
OverlapDevice HostOverlapDevice(double link_bytes_per_s);

absl::StatusOr<OverlapResult> MeasureOverlap(const OverlapOptions& options, OverlapDevice device);

}  // namespace turnkeep::bench
