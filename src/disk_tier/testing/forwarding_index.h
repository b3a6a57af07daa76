// ForwardingIndex: an Index that hands everything to another. Base of those that interfere.
#pragma once

#include <memory>
#include <utility>

#include "disk_tier/index.h"

namespace turnkeep {

class ForwardingIndex : public Index {
 public:
  explicit ForwardingIndex(std::unique_ptr<Index> inner) : inner_(std::move(inner)) {}

  bool FoundCleanShutdown() const override { return inner_->FoundCleanShutdown(); }
  uint32_t NextFile() const override { return inner_->NextFile(); }
  absl::StatusOr<IndexMeta> Load(IndexVisitor& visitor) override { return inner_->Load(visitor); }
  absl::Status Apply(IndexBatch batch, SyncMode sync, IndexDone done) override {
    return inner_->Apply(std::move(batch), sync, std::move(done));
  }
  absl::Status Flush() override { return inner_->Flush(); }
  IndexStats Stats() const override { return inner_->Stats(); }

 protected:
  Index& inner() { return *inner_; }

 private:
  const std::unique_ptr<Index> inner_;
};

}  // namespace turnkeep
