#include "api/server_metrics.h"

#include <algorithm>
#include <span>

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "api/frame.h"
#include "core/status.h"

namespace turnkeep {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Labels as the store writes them, a="b",c="d", as pairs. Values hold no quotes.
std::vector<ClientMetric::Label> ParseLabels(const std::string& text) {
  std::vector<ClientMetric::Label> labels;
  size_t at = 0;
  while (at < text.size()) {
    const size_t equals = text.find("=\"", at);
    if (equals == std::string::npos) break;
    const size_t quote = text.find('"', equals + 2);
    if (quote == std::string::npos) break;
    ClientMetric::Label label;
    label.name = text.substr(at, equals - at);
    label.value = text.substr(equals + 2, quote - equals - 2);
    labels.push_back(std::move(label));
    at = quote + 1;
    while (at < text.size() && (text[at] == ',' || text[at] == ' ')) ++at;
  }
  return labels;
}

class Families {
 public:
  MetricFamily& Get(const std::string& name, const std::string& help, MetricType type) {
    auto [it, fresh] = by_name_.try_emplace("turnkeep_" + name);
    if (fresh) {
      it->second.name = it->first;
      it->second.help = help;
      it->second.type = type;
    }
    return it->second;
  }
  void Add(const NamedCount& count) {
    ClientMetric metric;
    metric.label = ParseLabels(count.labels);
    if (count.monotonic) {
      metric.counter.value = count.value;
    } else {
      metric.gauge.value = count.value;
    }
    Get(count.name, count.help, count.monotonic ? MetricType::Counter : MetricType::Gauge)
        .metric.push_back(std::move(metric));
  }
  void AddHistogram(const std::string& name, const std::string& help, const std::string& labels,
                    std::span<const double> bounds, std::span<const uint64_t> counts, double sum) {
    ClientMetric metric;
    metric.label = ParseLabels(labels);
    uint64_t total = 0;
    for (size_t i = 0; i < bounds.size() && i < counts.size(); ++i) {
      total += counts[i];
      metric.histogram.bucket.push_back({.cumulative_count = total, .upper_bound = bounds[i]});
    }
    if (counts.size() > bounds.size()) total += counts[bounds.size()];
    metric.histogram.sample_count = total;
    metric.histogram.sample_sum = sum;
    Get(name, help, MetricType::Histogram).metric.push_back(std::move(metric));
  }
  std::string Text() const {
    std::vector<MetricFamily> list;
    for (const auto& [name, family] : by_name_) list.push_back(family);
    return prometheus::TextSerializer().Serialize(list);
  }

 private:
  std::map<std::string, MetricFamily> by_name_;
};

void AddTier(Families& families, const std::string& name, const TierStatus& tier) {
  const std::string labels = fmt::format("tier=\"{}\"", name);
  const auto gauge = [&](const char* metric, const char* help, uint64_t value) {
    families.Add({.name = metric,
                  .labels = labels,
                  .help = help,
                  .value = static_cast<double>(value),
                  .monotonic = false});
  };
  gauge("tier_capacity_bytes", "Hard cap of the tier", tier.capacity_bytes);
  gauge("tier_reserved_bytes", "Segments or files of the tier", tier.reserved_bytes);
  gauge("tier_used_bytes", "Slots that hold a chunk", tier.used_bytes);
  gauge("tier_pinned_bytes", "Slots that may not be evicted", tier.pinned_bytes);
  gauge("tier_chunks", "Chunks with a copy in the tier", tier.chunk_count);
}

}  // namespace

void ServerMetrics::AddRequest(uint16_t type, absl::Duration latency, absl::StatusCode code) {
  const double seconds = absl::ToDoubleSeconds(latency);
  Verb& verb = verbs_[type];
  ++verb.requests;
  verb.seconds += seconds;
  const auto bound = std::lower_bound(kBoundsSeconds.begin(), kBoundsSeconds.end(), seconds);
  ++verb.buckets[static_cast<size_t>(bound - kBoundsSeconds.begin())];
  if (code == absl::StatusCode::kOk) return;
  ++verb.errors;
  ++errors_[static_cast<int>(code)];
}

uint64_t ServerMetrics::disconnects() const {
  uint64_t sum = 0;
  for (const auto& [reason, count] : disconnects_) sum += count;
  return sum;
}

void ServerMetrics::AppendTo(std::vector<NamedCount>& counts) const {
  counts.push_back({.name = "server_accepted_total",
                    .help = "Connections accepted",
                    .value = static_cast<double>(accepted_)});
  for (const auto& [type, verb] : verbs_) {
    counts.push_back({.name = "server_request_errors_total",
                      .labels = fmt::format("verb=\"{}\"", wire::TypeName(type)),
                      .help = "Requests answered with an error",
                      .value = static_cast<double>(verb.errors)});
  }
  for (const auto& [code, count] : errors_) {
    const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
    counts.push_back({.name = "server_errors_total",
                      .labels = fmt::format("code=\"{}\"", name),
                      .help = "Errors answered, by status code",
                      .value = static_cast<double>(count)});
  }
  for (const auto& [reason, count] : disconnects_) {
    counts.push_back({.name = "server_disconnects_total",
                      .labels = fmt::format("reason=\"{}\"", reason),
                      .help = "Connections ended by the daemon",
                      .value = static_cast<double>(count)});
  }
}

std::string PrometheusText(const StoreStatus& status, const ServerMetrics& metrics,
                           const std::vector<NamedCount>& extra) {
  Families families;
  const auto gauge = [&](const char* name, const char* help, double value) {
    families.Add({.name = name, .help = help, .value = value, .monotonic = false});
  };
  families.Add({.name = "build_info",
                .labels = fmt::format("version=\"{}\",durability=\"{}\",policy=\"{}\"",
                                      status.version, status.durability, status.policy),
                .help = "What runs",
                .value = 1,
                .monotonic = false});
  gauge("uptime_seconds", "Since the store was opened", status.uptime_s);
  gauge("warnings", "Fallbacks and failures in the status",
        static_cast<double>(status.warnings.size()));
  AddTier(families, "host", status.host);
  AddTier(families, "disk", status.disk);
  for (const NamedCount& count : status.counts) families.Add(count);
  for (const NamedHistogram& h : status.histograms) {
    families.AddHistogram(h.name, h.help, "", h.upper_bounds, h.counts, h.sum);
  }
  std::vector<NamedCount> own = extra;
  metrics.AppendTo(own);
  for (const NamedCount& count : own) families.Add(count);
  for (const auto& [type, verb] : metrics.verbs_) {
    families.AddHistogram("server_request_seconds", "Time from a request's arrival to its answer",
                          fmt::format("verb=\"{}\"", wire::TypeName(type)),
                          ServerMetrics::kBoundsSeconds, verb.buckets, verb.seconds);
  }
  return families.Text();
}

}  // namespace turnkeep
