// A Store that passes everything on to another one: what a test changes of it, it overrides.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/store.h"

namespace turnkeep::testing {

// Thread-safety: that of the store below, which must outlive it.
class ForwardingStore : public Store {
 public:
  using SaveDone = std::function<void(absl::StatusOr<std::unique_ptr<SaveOperation>>)>;
  explicit ForwardingStore(Store& below) : below_(below) {}

  absl::Status Close(absl::Duration deadline) override { return below_.Close(deadline); }
  absl::StatusOr<TenantNumber> OpenTenant(const std::string& name) override {
    return below_.OpenTenant(name);
  }
  absl::StatusOr<std::unique_ptr<KvStore>> ForTenant(const std::string& name) override {
    return below_.ForTenant(name);
  }
  void BeginSave(TenantNumber tenant, const SaveRequest& request, SaveDone done) override {
    below_.BeginSave(tenant, request, std::move(done));
  }
  void BeginImport(TenantNumber tenant, const ImportRequest& request, SaveDone done) override {
    below_.BeginImport(tenant, request, std::move(done));
  }
  void BeginRestore(TenantNumber tenant, const RestoreRequest& request, RestoreDone done,
                    std::function<bool()> abandoned) override {
    below_.BeginRestore(tenant, request, std::move(done), std::move(abandoned));
  }
  absl::StatusOr<VerifyReport> Verify(TenantNumber tenant, const VerifyRequest& request,
                                      const std::function<void(uint64_t, uint64_t)>& progress,
                                      const std::function<bool()>& cancelled) override {
    return below_.Verify(tenant, request, progress, cancelled);
  }
  std::unique_ptr<GpuEngine> OpenGpuEngine(TenantNumber tenant, std::string name,
                                           int64_t pid) override {
    return below_.OpenGpuEngine(tenant, std::move(name), pid);
  }
  absl::StatusOr<SegmentGrant> Segment(uint32_t segment) override {
    return below_.Segment(segment);
  }
  void ObserveReleasedSegments(std::function<void(uint32_t)> observer) override {
    below_.ObserveReleasedSegments(std::move(observer));
  }
  StoreStatus GetStatus() override { return below_.GetStatus(); }
  Activity GetActivity(TenantNumber tenant, const ActivityRequest& request) override {
    return below_.GetActivity(tenant, request);
  }
  std::vector<SessionInfo> ListAllSessions(TenantNumber tenant,
                                           const ListRequest& request) override {
    return below_.ListAllSessions(tenant, request);
  }
  std::vector<std::string> ListTenants() override { return below_.ListTenants(); }

 protected:
  Store& below() { return below_; }

 private:
  Store& below_;
};

}  // namespace turnkeep::testing
