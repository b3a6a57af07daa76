// Tenants and layouts by number. Entries are made once and never change, so pointers
// stay valid and may be used without the store's lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <absl/container/flat_hash_map.h>
#include <absl/synchronization/mutex.h>

#include "core/chunk_identity.h"
#include "core/layout.h"

namespace turnkeep {

struct Tenant {
  uint16_t number = 0;
  std::string name;
  TenantKey key;
  ChunkHasher hasher;
};

class LayoutInfo {
 public:
  LayoutInfo(uint16_t number, KvLayout layout);

  const uint16_t number;
  const KvLayout layout;
  const Fingerprint fingerprint;
  const uint64_t bytes_per_token;

  // Thread-safe; the reference stays valid.
  const ChunkGeometry& Geometry(uint32_t token_count) const;

 private:
  mutable absl::Mutex mu_;
  mutable std::vector<std::unique_ptr<ChunkGeometry>> geometries_ ABSL_GUARDED_BY(mu_);
};

// Thread-compatible: guarded by the store's lock.
class Registry {
 public:
  // Null when there is none.
  const Tenant* FindTenant(std::string_view name) const;
  const Tenant* TenantAt(uint32_t number) const;
  const LayoutInfo* FindLayout(const Fingerprint& fingerprint) const;
  const LayoutInfo* LayoutAt(uint32_t number) const;
  const std::vector<std::unique_ptr<Tenant>>& tenants() const { return tenants_; }
  size_t tenant_count() const { return tenant_count_; }  // without the gaps
  const std::vector<std::unique_ptr<LayoutInfo>>& layouts() const { return layouts_; }

  // The number must not be taken. Numbers may leave gaps (null entries).
  const Tenant* AddTenant(uint16_t number, const std::string& name, const TenantKey& key);
  const LayoutInfo* AddLayout(uint16_t number, KvLayout layout);

 private:
  std::vector<std::unique_ptr<Tenant>> tenants_;
  size_t tenant_count_ = 0;
  std::vector<std::unique_ptr<LayoutInfo>> layouts_;
  absl::flat_hash_map<Fingerprint, const LayoutInfo*> by_fingerprint_;
};

}  // namespace turnkeep
