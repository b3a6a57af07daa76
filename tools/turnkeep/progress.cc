#include "progress.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "human.h"

namespace turnkeep {
namespace {

constexpr int64_t kShowAfterNs = 1'000'000'000;
constexpr int64_t kRefreshNs = 100'000'000;
constexpr size_t kBarColumns = 20;

}  // namespace

Progress::Progress(Environment& environment, std::string label)
    : environment_(environment), label_(std::move(label)), start_ns_(environment.clock->NowNs()) {}

Progress::~Progress() {
  if (visible_) environment_.write_err("\r\x1b[K");
}

void Progress::Update(uint64_t done_bytes, uint64_t total_bytes) {
  if (!environment_.err_is_terminal) return;
  const int64_t now_ns = environment_.clock->NowNs();
  if (now_ns - start_ns_ < kShowAfterNs || (visible_ && now_ns - shown_ns_ < kRefreshNs)) return;
  shown_ns_ = now_ns;
  visible_ = true;
  const double elapsed_s = static_cast<double>(now_ns - start_ns_) * 1e-9;
  environment_.write_err("\r" + ProgressLine(label_, done_bytes, total_bytes, elapsed_s) +
                         "\x1b[K");
}

std::string ProgressLine(const std::string& label, uint64_t done_bytes, uint64_t total_bytes,
                         double elapsed_s) {
  done_bytes = std::min(done_bytes, total_bytes);
  const double share =
      total_bytes == 0 ? 1 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  const auto filled = static_cast<size_t>(share * kBarColumns);
  const double rate = elapsed_s > 0 ? static_cast<double>(done_bytes) / elapsed_s : 0;
  const std::string left =
      rate > 0 ? HumanSeconds(static_cast<double>(total_bytes - done_bytes) / rate) + " left" : "";
  return fmt::format("{}  [{}{}]  {:>3}%  {} of {}  {}/s  {}", label, std::string(filled, '#'),
                     std::string(kBarColumns - filled, '.'), static_cast<int>(share * 100),
                     HumanBytes(done_bytes), HumanBytes(total_bytes),
                     HumanBytes(static_cast<uint64_t>(rate)), left);
}

}  // namespace turnkeep
