// The store's numbers, under the names that /metrics and `turnkeep status` show.

#include <cmath>
#include <utility>

#include "core/status.h"
#include "core/units.h"
#include "store/store_impl.h"

namespace turnkeep {

namespace {

NamedHistogram HistogramOf(const char* name, const char* help, const LatencyHistogram& histogram) {
  const LatencyHistogram::Reading reading = histogram.Read();
  NamedHistogram out{.name = name, .help = help, .sum = static_cast<double>(reading.sum_ns) * 1e-9};
  uint64_t below = 0;
  for (const auto& bucket : reading.Cumulative()) {
    if (std::isfinite(bucket.upper_s)) out.upper_bounds.push_back(bucket.upper_s);
    out.counts.push_back(bucket.count - below);
    below = bucket.count;
  }
  return out;
}

class Counts {
 public:
  explicit Counts(std::vector<NamedCount>* out) : out_(out) {}
  void Counter(const char* name, const char* labels, const char* help, uint64_t value) {
    out_->push_back({name, labels, help, static_cast<double>(value), true});
  }
  void Gauge(const char* name, const char* labels, const char* help, double value) {
    out_->push_back({name, labels, help, value, false});
  }

 private:
  std::vector<NamedCount>* out_;
};

void AddCounters(const Counters& c, Counts* out) {
  out->Counter("saves_begun_total", "", "Saves begun", c.saves_begun);
  out->Counter("saves_committed_total", "", "Saves committed", c.saves_committed);
  out->Counter("saves_refused_generation_total", "", "Saves refused for an old generation",
               c.saves_refused_generation);
  out->Counter("saves_cut_short_total", "", "Saves that got room for fewer tokens than offered",
               c.saves_cut_short);
  out->Counter("saved_tokens_total", "", "Tokens whose KV was taken over", c.saved_tokens);
  out->Counter("saved_bytes_total", "", "KV bytes taken over", c.saved_bytes);
  out->Counter("restores_total", "", "Restores begun", c.restores);
  out->Counter("restores_missed_total", "", "Restores that found nothing", c.restores_missed);
  out->Counter("restores_partial_total", "", "Restores of a shorter prefix than asked for",
               c.restores_partial);
  out->Counter("restores_cut_late_total", "", "Restores cut short by a deadline",
               c.restores_cut_late);
  out->Counter("restores_waited_total", "", "Restores that waited for room in the host tier",
               c.restores_waited);
  out->Counter("restores_declined_total", "",
               "Restores of which prefilling takes less time, in part or whole",
               c.restores_declined);
  out->Counter("declined_tokens_total", "", "Stored tokens that were declined", c.declined_tokens);
  out->Counter("asked_tokens_total", "", "Tokens asked for by restores", c.asked_tokens);
  out->Counter("restored_tokens_total", "tier=\"host\"", "Tokens found, by tier",
               c.restored_tokens[1]);
  out->Counter("restored_tokens_total", "tier=\"disk\"", "Tokens found, by tier",
               c.restored_tokens[2]);
  out->Counter("restored_tokens_total", "tier=\"gpu\"", "Tokens found, by tier",
               c.restored_tokens[3]);
  out->Counter("restored_chunks_total", "tier=\"host\"", "Chunks found, by tier",
               c.restored_chunks[1]);
  out->Counter("restored_chunks_total", "tier=\"disk\"", "Chunks found, by tier",
               c.restored_chunks[2]);
  out->Counter("restored_chunks_total", "tier=\"gpu\"", "Chunks found, by tier",
               c.restored_chunks[3]);
  out->Counter("evictions_total", "tier=\"host\",copy=\"other left\"", "Copies evicted",
               c.host_evictions);
  out->Counter("evictions_total", "tier=\"host\",copy=\"last\"", "Copies evicted",
               c.host_evictions_lost);
  out->Counter("evictions_total", "tier=\"disk\",copy=\"any\"", "Copies evicted", c.disk_evictions);
  out->Counter("evictions_by_reason_total", "reason=\"space\"", "Copies evicted, by reason",
               c.evicted_for_space);
  out->Counter("evictions_by_reason_total", "reason=\"watermark\"", "Copies evicted, by reason",
               c.evicted_at_watermark);
  out->Counter("evictions_by_reason_total", "reason=\"prefetch\"", "Copies evicted, by reason",
               c.evicted_for_prefetch);
  out->Counter("evictions_by_reason_total", "reason=\"hint\"", "Copies evicted, by reason",
               c.evicted_by_hint);
  out->Counter("digest_failures_total", "tier=\"host\"", "Copies dropped for a wrong digest",
               c.host_digest_failures);
  out->Counter("digest_failures_total", "tier=\"disk\"", "Copies dropped for a wrong digest",
               c.disk_digest_failures);
  out->Counter("disk_read_errors_total", "", "Chunks dropped because reading failed twice",
               c.disk_read_errors);
  out->Counter("disk_write_errors_total", "", "Chunks whose write failed", c.disk_write_errors);
  out->Counter("disk_writes_refused_total", "", "Chunks not written for lack of room or budget",
               c.disk_writes_refused);
  out->Counter("index_errors_total", "", "Index changes that failed", c.index_errors);
  out->Counter("disk_written_chunks_total", "", "Chunks written to disk", c.chunks_written);
  out->Counter("disk_written_bytes_total", "", "Slot bytes written to disk", c.bytes_written);
  out->Counter("disk_read_chunks_total", "", "Chunks read from disk", c.chunks_read);
  out->Counter("disk_read_bytes_total", "", "Slot bytes read from disk", c.bytes_read);
  out->Counter("sessions_expired_total", "", "Sessions dropped at the end of their time to live",
               c.sessions_expired);
}

void AddHints(const Expectations& expected, const Expectations& retained, Counts* out) {
  out->Gauge("hinted_queue_requests", "", "Requests in the hinted waiting queues",
             static_cast<double>(expected.queue_count()));
  out->Gauge("hinted_chunks", "", "Chunks that a hint expects",
             static_cast<double>(expected.chunk_count()));
  out->Gauge("retained_chunks", "", "Chunks that a hint retains",
             static_cast<double>(retained.chunk_count()));
}

void AddPrefetch(const Placement::PrefetchUsage& prefetch, Counts* out) {
  out->Counter("prefetches_begun_total", "", "Chunks that prefetches began to read",
               prefetch.begun);
  out->Counter("prefetches_failed_total", "", "Prefetches that brought nothing", prefetch.failed);
  out->Counter("prefetches_used_total", "", "Prefetched chunks that were used", prefetch.used);
  out->Counter("prefetches_wasted_total", "", "Prefetched chunks that left unused",
               prefetch.wasted);
  out->Gauge("prefetch_in_flight_bytes", "", "Slot bytes being prefetched",
             static_cast<double>(prefetch.in_flight_bytes));
  out->Gauge("prefetch_unused_bytes", "", "Slot bytes prefetched and not used yet",
             static_cast<double>(prefetch.unused_bytes));
  out->Gauge("prefetch_waiting_chunks", "", "Chunks on disk that a hint expects",
             static_cast<double>(prefetch.waiting_count));
}

}  // namespace

StoreStatus StoreImpl::GetStatus() {
  StoreStatus status;
  absl::MutexLock lock(&state_.mu);
  ExpireSessions();
  const ArenaUsage arena = state_.arena->Usage();
  const Placement::TierUsage& host = state_.placement.host();
  const Placement::TierUsage& disk = state_.placement.disk();
  status.version = TURNKEEP_VERSION;
  status.durability = std::string(NameOf(state_.options.durability));
  status.policy = state_.options.policy;
  status.uptime_s = static_cast<double>(state_.NowNs() - opened_ns_) * 1e-9;
  status.session_count = state_.sessions.size();
  status.chunk_count = state_.referenced_chunks;
  status.open_tickets = state_.open_tickets;
  status.host = {.capacity_bytes = host.capacity_bytes,
                 .reserved_bytes = arena.segment_bytes,
                 .used_bytes = arena.used_bytes,
                 .pinned_bytes = host.pinned_bytes,
                 .chunk_count = host.chunk_count,
                 .description = state_.arena->page_notice()};
  status.warnings = state_.warnings;
  Counts counts(&status.counts);
  AddCounters(state_.counters, &counts);
  if (state_.has_disk()) {
    const ExtentUsage extents = state_.disk.extents->Usage();
    const BlockDeviceStats device = state_.disk.device->Stats();
    const IndexStats index = state_.disk.index->Stats();
    status.disk = {.capacity_bytes = extents.capacity_bytes,
                   .reserved_bytes = extents.file_bytes,
                   .used_bytes = extents.used_bytes,
                   .pinned_bytes = disk.pinned_bytes,
                   .chunk_count = disk.chunk_count,
                   .description = state_.disk.device->Describe()};
    if (extents.poisoned_files > 0) {
      status.warnings.push_back(fmt::format(
          "{} extent files take no more writes after a failed sync", extents.poisoned_files));
    }
    counts.Gauge("disk_io_in_flight", "", "Operations given to the kernel", device.in_flight);
    counts.Gauge("disk_io_queued", "", "Operations waiting for room in the device", device.queued);
    counts.Counter("disk_io_errors_total", "", "Failed device operations", device.errors);
    counts.Counter("device_written_bytes_total", "", "Bytes the device wrote", device.write_bytes);
    counts.Counter("device_read_bytes_total", "", "Bytes the device read", device.read_bytes);
    counts.Gauge("disk_write_queue_chunks", "", "Chunks queued or being written",
                 static_cast<double>(writer_->queued_chunks()));
    counts.Gauge("index_queued_batches", "", "Index changes waiting", index.queued_batches);
    counts.Counter("index_written_bytes_total", "", "Index keys and values written", index.bytes);
    counts.Gauge("index_memory_bytes", "", "Memory of the index",
                 static_cast<double>(index.memory_bytes));
    counts.Gauge("disk_quarantined_bytes", "", "Slots out of use after errors",
                 static_cast<double>(extents.quarantined_bytes));
  } else {
    status.disk.description = "no disk tier: data_dir is not set";
  }
  status.histograms.push_back(HistogramOf(
      "save_seconds", "From the begin of a save to its commit's answer", state_.save_latency));
  status.histograms.push_back(HistogramOf(
      "restore_seconds", "From the begin of a restore until every layer is in host memory",
      state_.restore_latency));
  AddHints(expectations_, retained_, &counts);
  AddPrefetch(state_.placement.prefetch(), &counts);
  counts.Gauge("sessions", "", "Sessions", static_cast<double>(status.session_count));
  counts.Gauge("chunks", "", "Chunks that sessions refer to, evicted ones included",
               static_cast<double>(status.chunk_count));
  counts.Gauge("open_tickets", "", "Saves and restores running",
               static_cast<double>(status.open_tickets));
  counts.Gauge("waiting_saves", "", "Saves waiting for room",
               static_cast<double>(waiting_saves_.size()));
  counts.Gauge("waiting_restores", "", "As waiting_saves", 1.0 * waiting_restores_.size());
  return status;
}

}  // namespace turnkeep
