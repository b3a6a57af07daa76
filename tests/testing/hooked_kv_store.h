// A KvStore that passes everything on to another one, and lets a test do something (or
// fail) at numbered points inside tickets: kill a daemon between two layers, damage a
// page, refuse a commit.
//
// Thread-safety: that of the store behind it; hooks are set before tickets are begun and
// are called on the thread that uses the ticket.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/kv_store.h"

namespace turnkeep::testing {

struct StoreHooks {
  // An error is returned in place of the call.
  std::function<absl::Status(uint32_t layer)> before_wait_layer;
  // Of ReadPage and VerifyPage. DataLoss makes the page a damaged one: the ticket ends before its
  // span.
  std::function<absl::Status(size_t span, uint32_t layer)> before_read_page;
  // Sees, and may change, what a page was read as.
  std::function<void(std::span<std::byte> page)> after_read_page;
  std::function<absl::Status(uint32_t layer)> before_finish_layer;
  std::function<absl::Status()> before_commit;
  std::function<absl::Status()> before_begin;    // of saves and restores
  std::function<absl::Status()> before_restore;  // of restores alone
  // Of the layout and of a session: what a turn asks first.
  std::function<absl::Status()> before_greeting;
};

class HookedKvStore : public KvStore {
 public:
  explicit HookedKvStore(KvStore* store) : store_(store) {}

  StoreHooks hooks;

  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginSave(const SaveRequest& request) override {
    if (const absl::Status status = Call(hooks.before_begin); !status.ok()) return status;
    return Wrap(store_->BeginSave(request));
  }
  absl::StatusOr<std::unique_ptr<SaveTicket>> BeginImport(const ImportRequest& request) override {
    return Wrap(store_->BeginImport(request));
  }
  absl::StatusOr<std::unique_ptr<RestoreTicket>> BeginRestore(
      const RestoreRequest& request) override {
    if (const absl::Status status = Call(hooks.before_begin); !status.ok()) return status;
    if (const absl::Status status = Call(hooks.before_restore); !status.ok()) return status;
    auto ticket = store_->BeginRestore(request);
    if (!ticket.ok()) return ticket.status();
    return std::make_unique<Restore>(this, std::move(*ticket));
  }

  absl::StatusOr<Fingerprint> RegisterLayout(const KvLayout& layout) override {
    if (const absl::Status status = Call(hooks.before_greeting); !status.ok()) return status;
    return store_->RegisterLayout(layout);
  }
  absl::StatusOr<KvLayout> GetLayout(const Fingerprint& fingerprint) override {
    return store_->GetLayout(fingerprint);
  }
  absl::StatusOr<SessionInfo> ForkSession(const ForkRequest& request) override {
    return store_->ForkSession(request);
  }
  absl::StatusOr<SessionInfo> TruncateSession(const TruncateRequest& request) override {
    return store_->TruncateSession(request);
  }
  absl::StatusOr<SessionInfo> RenameSession(const std::string& from,
                                            const std::string& to) override {
    return store_->RenameSession(from, to);
  }
  absl::Status DropSession(const std::string& name) override { return store_->DropSession(name); }
  absl::StatusOr<SessionInfo> PinSession(const std::string& name) override {
    return store_->PinSession(name);
  }
  absl::StatusOr<SessionInfo> UnpinSession(const std::string& name) override {
    return store_->UnpinSession(name);
  }
  absl::StatusOr<SessionInfo> SetSessionTtl(const std::string& name, absl::Duration ttl) override {
    return store_->SetSessionTtl(name, ttl);
  }
  absl::StatusOr<std::vector<SessionInfo>> ListSessions(const ListRequest& request) override {
    return store_->ListSessions(request);
  }
  absl::StatusOr<SessionInfo> StatSession(const std::string& name) override {
    if (const absl::Status status = Call(hooks.before_greeting); !status.ok()) return status;
    return store_->StatSession(name);
  }
  absl::StatusOr<SessionDetail> ShowSession(const std::string& name) override {
    return store_->ShowSession(name);
  }
  HintReply Hint(const HintRequest& request) override { return store_->Hint(request); }
  absl::StatusOr<Activity> GetActivity(const ActivityRequest& request) override {
    return store_->GetActivity(request);
  }
  absl::StatusOr<Explanation> Explain(const ExplainRequest& request) override {
    return store_->Explain(request);
  }
  absl::StatusOr<std::vector<TreeNode>> Tree(const TreeRequest& request) override {
    return store_->Tree(request);
  }
  absl::StatusOr<VerifyReport> Verify(
      const VerifyRequest& request,
      const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress) override {
    return store_->Verify(request, progress);
  }
  absl::StatusOr<StoreStatus> Status() override { return store_->Status(); }
  absl::Status ReportGpuResidency(std::span<const GpuChunk> chunks) override {
    return store_->ReportGpuResidency(chunks);
  }

 private:
  template <typename... Args>
  static absl::Status Call(const std::function<absl::Status(Args...)>& hook, Args... args) {
    return hook ? hook(args...) : absl::OkStatus();
  }

  class Save : public SaveTicket {
   public:
    Save(HookedKvStore* owner, std::unique_ptr<SaveTicket> ticket)
        : owner_(owner), ticket_(std::move(ticket)) {}
    uint64_t known_tokens() const override { return ticket_->known_tokens(); }
    uint64_t accepted_tokens() const override { return ticket_->accepted_tokens(); }
    std::span<const ChunkToSave> chunks() const override { return ticket_->chunks(); }
    std::span<std::byte> Page(size_t chunk, uint32_t layer) override {
      return ticket_->Page(chunk, layer);
    }
    absl::Status FinishLayer(uint32_t layer) override {
      const absl::Status status = Call(owner_->hooks.before_finish_layer, layer);
      return status.ok() ? ticket_->FinishLayer(layer) : status;
    }
    absl::StatusOr<CommitResult> Commit(absl::Duration deadline) override {
      const absl::Status status = Call(owner_->hooks.before_commit);
      if (!status.ok()) return status;
      return ticket_->Commit(deadline);
    }

   private:
    HookedKvStore* const owner_;
    const std::unique_ptr<SaveTicket> ticket_;
  };

  class Restore : public RestoreTicket {
   public:
    Restore(HookedKvStore* owner, std::unique_ptr<RestoreTicket> ticket)
        : owner_(owner), ticket_(std::move(ticket)) {}
    uint64_t token_count() const override { return std::min(limit_, ticket_->token_count()); }
    uint64_t generation() const override { return ticket_->generation(); }
    std::span<const RestoredSpan> spans() const override { return ticket_->spans(); }
    const ChunkId& chunk(size_t span) const override { return ticket_->chunk(span); }
    std::string miss_reason() const override {
      return reason_.empty() ? ticket_->miss_reason() : reason_;
    }
    absl::StatusOr<uint64_t> WaitLayer(uint32_t layer, absl::Duration deadline) override {
      const absl::Status status = Call(owner_->hooks.before_wait_layer, layer);
      if (!status.ok()) return status;
      auto tokens = ticket_->WaitLayer(layer, deadline);
      if (!tokens.ok()) return tokens.status();
      return std::min(*tokens, limit_);
    }
    absl::Status ReadPage(size_t span, uint32_t layer, std::span<std::byte> destination) override {
      const absl::Status status = Call(owner_->hooks.before_read_page, span, layer);
      if (status.ok()) {
        const absl::Status read = ticket_->ReadPage(span, layer, destination);
        if (read.ok() && owner_->hooks.after_read_page) owner_->hooks.after_read_page(destination);
        return read;
      }
      // What a caller must not use.
      std::fill(destination.begin(), destination.end(), std::byte{0x7F});
      return Damaged(span, status);
    }
    std::span<const std::byte> Page(size_t span, uint32_t layer) override {
      return ticket_->Page(span, layer);
    }
    absl::Status VerifyPage(size_t span, uint32_t layer) override {
      const absl::Status status = Call(owner_->hooks.before_read_page, span, layer);
      return status.ok() ? ticket_->VerifyPage(span, layer) : Damaged(span, status);
    }
    absl::StatusOr<ChunkHeader> Header(size_t span) override { return ticket_->Header(span); }

   private:
    absl::Status Damaged(size_t span, const absl::Status& status) {
      if (absl::IsDataLoss(status)) {
        limit_ = std::min<uint64_t>(limit_, ticket_->spans()[span].token_begin);
        reason_ = std::string(status.message());
      }
      return status;
    }

    HookedKvStore* const owner_;
    const std::unique_ptr<RestoreTicket> ticket_;
    uint64_t limit_ = UINT64_MAX;
    std::string reason_;
  };

  absl::StatusOr<std::unique_ptr<SaveTicket>> Wrap(
      absl::StatusOr<std::unique_ptr<SaveTicket>> ticket) {
    if (!ticket.ok()) return ticket.status();
    return std::make_unique<Save>(this, std::move(*ticket));
  }

  KvStore* const store_;
};

}  // namespace turnkeep::testing
