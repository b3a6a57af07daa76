#include "store/registry.h"

#include <utility>

#include "core/check.h"

namespace turnkeep {

LayoutInfo::LayoutInfo(uint16_t layout_number, KvLayout layout_value)
    : number(layout_number),
      layout(std::move(layout_value)),
      fingerprint(FingerprintOf(layout)),
      bytes_per_token(BytesPerToken(layout)),
      geometries_(layout.chunk_tokens + 1) {}

const ChunkGeometry& LayoutInfo::Geometry(uint32_t token_count) const {
  TK_CHECK(token_count >= 1 && token_count <= layout.chunk_tokens);
  absl::MutexLock lock(&mu_);
  auto& geometry = geometries_[token_count];
  if (!geometry) geometry = std::make_unique<ChunkGeometry>(GeometryOf(layout, token_count));
  return *geometry;
}

const Tenant* Registry::FindTenant(std::string_view name) const {
  for (const auto& tenant : tenants_) {
    if (tenant && tenant->name == name) return tenant.get();
  }
  return nullptr;
}

const Tenant* Registry::TenantAt(uint32_t number) const {
  return number < tenants_.size() ? tenants_[number].get() : nullptr;
}

const LayoutInfo* Registry::FindLayout(const Fingerprint& fingerprint) const {
  const auto it = by_fingerprint_.find(fingerprint);
  return it == by_fingerprint_.end() ? nullptr : it->second;
}

const LayoutInfo* Registry::LayoutAt(uint32_t number) const {
  return number < layouts_.size() ? layouts_[number].get() : nullptr;
}

const Tenant* Registry::AddTenant(uint16_t number, const std::string& name, const TenantKey& key) {
  if (number >= tenants_.size()) tenants_.resize(number + 1);
  TK_CHECK(!tenants_[number]);
  ++tenant_count_;
  tenants_[number] = std::unique_ptr<Tenant>(
      new Tenant{.number = number, .name = name, .key = key, .hasher = ChunkHasher(key)});
  return tenants_[number].get();
}

const LayoutInfo* Registry::AddLayout(uint16_t number, KvLayout layout) {
  if (number >= layouts_.size()) layouts_.resize(number + 1);
  TK_CHECK(!layouts_[number]);
  layouts_[number] = std::make_unique<LayoutInfo>(number, std::move(layout));
  by_fingerprint_.emplace(layouts_[number]->fingerprint, layouts_[number].get());
  return layouts_[number].get();
}

}  // namespace turnkeep
