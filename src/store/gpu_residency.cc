#include "store/gpu_residency.h"

#include <utility>

#include "core/status.h"

namespace turnkeep {

class GpuResidency::Handle final : public GpuEngine {
 public:
  Handle(GpuResidency* residency, uint64_t number) : residency_(residency), number_(number) {}
  ~Handle() override {
    std::shared_ptr<const Engine> gone;  // its table is freed outside of the lock
    absl::MutexLock lock(&residency_->mu_);
    const auto at = residency_->engines_.find(number_);
    gone = std::move(at->second);
    residency_->engines_.erase(at);
  }

  absl::Status Report(std::span<const GpuChunk> chunks) override {
    if (chunks.size() > kMaxGpuChunks)
      return InvalidArgument("gpu residency: {} chunks, the limit is {}", chunks.size(),
                             kMaxGpuChunks);
    std::shared_ptr<const Engine> before;
    {
      absl::MutexLock lock(&residency_->mu_);
      before = residency_->engines_.at(number_);
    }
    auto engine = std::make_shared<Engine>(
        Engine{.tenant = before->tenant, .name = before->name, .pid = before->pid});
    engine->chunks.reserve(chunks.size());
    for (const GpuChunk& chunk : chunks) {
      if (engine->chunks.try_emplace(chunk.chunk, chunk.bytes).second) engine->bytes += chunk.bytes;
    }
    absl::MutexLock lock(&residency_->mu_);
    residency_->engines_[number_] = std::move(engine);
    return absl::OkStatus();
  }

 private:
  GpuResidency* const residency_;
  const uint64_t number_;
};

std::unique_ptr<GpuEngine> GpuResidency::Open(uint32_t tenant, std::string name, int64_t pid) {
  auto engine =
      std::make_shared<Engine>(Engine{.tenant = tenant, .name = std::move(name), .pid = pid});
  absl::MutexLock lock(&mu_);
  engines_[++last_] = std::move(engine);
  return std::make_unique<Handle>(this, last_);
}

GpuResidency::Engines GpuResidency::EnginesOf(uint32_t tenant) const {
  Engines engines;
  absl::MutexLock lock(&mu_);
  for (const auto& [number, engine] : engines_)
    if (engine->tenant == tenant && !engine->chunks.empty()) engines.push_back(engine);
  return engines;
}

}  // namespace turnkeep
