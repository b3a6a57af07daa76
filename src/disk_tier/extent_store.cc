#include "disk_tier/extent_store.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>

#include <absl/base/thread_annotations.h>
#include <absl/synchronization/mutex.h>

#include "core/check.h"
#include "core/status.h"
#include "disk_tier/aligned_buffer.h"
#include "disk_tier/extent_allocator.h"
#include "disk_tier/extent_file_header.h"
#include "disk_tier/extent_io.h"
#include "disk_tier/write_budget.h"

namespace turnkeep {
namespace {

constexpr uint64_t kUsualFileBytes = 256 * kMiB;
constexpr uint64_t kUsualFiles = 512;
constexpr uint32_t kMinSlotsPerFile = 4;

uint64_t FileBytesOf(const ExtentStoreOptions& options) {
  if (options.file_bytes != 0) return options.file_bytes;
  uint64_t bytes = std::min(options.capacity_bytes / 64, kUsualFileBytes);
  bytes = std::max({bytes, options.capacity_bytes / kUsualFiles, kMinExtentFileBytes});
  return RoundUp(bytes, kBlockBytes);
}

}  // namespace

class ExtentStore::Impl {
 public:
  Impl(BlockDevice* device, const ExtentStoreOptions& options)
      : device_(device),
        options_(options),
        file_bytes_(FileBytesOf(options)),
        budget_(options.write_budget_bytes_per_day, options.clock),
        next_file_(std::max(options.first_file, 1u)) {}

  absl::Status OpenFiles() {
    TK_ASSIGN_OR_RETURN(std::vector<DeviceFile> files, device_->ListFiles());
    for (const DeviceFile& file : files) TK_RETURN_IF_ERROR(OpenFile(file));
    return absl::OkStatus();
  }

  absl::StatusOr<ExtentRef> Allocate(uint64_t slot_bytes, WritePurpose purpose) {
    if (slot_bytes == 0 || slot_bytes % kBlockBytes != 0 || slot_bytes > 2 * kMaxChunkBytes) {
      return InvalidArgument("allocate a slot of {} bytes: not a multiple of {} up to {}",
                             slot_bytes, kBlockBytes, 2 * kMaxChunkBytes);
    }
    absl::MutexLock lock(&mutex_);
    while (true) {
      if (purpose == WritePurpose::kDemotion && !budget_.Allows(slot_bytes)) {
        return ResourceExhausted("write budget of {} bytes a day: {} left, {} wanted",
                                 options_.write_budget_bytes_per_day, budget_.Left(), slot_bytes);
      }
      if (allocator_.file_bytes() > options_.capacity_bytes) return CapReached(slot_bytes);
      if (std::optional<ExtentRef> ref = allocator_.Take(slot_bytes)) {
        budget_.Charge(slot_bytes);
        return *ref;
      }
      if (changing_files_) {  // another caller makes or deletes a file: it may help us
        mutex_.Await(absl::Condition(this, &Impl::NotChanging));
        continue;
      }
      TK_RETURN_IF_ERROR(MakeFile(slot_bytes));
    }
  }

  void Free(ExtentRef ref) {
    absl::MutexLock lock(&mutex_);
    allocator_.Free(ref);
  }
  void Quarantine(ExtentRef ref) {
    absl::MutexLock lock(&mutex_);
    allocator_.Quarantine(ref);
  }
  absl::Status MarkUsed(ExtentRef ref, uint64_t slot_bytes) {
    absl::MutexLock lock(&mutex_);
    return allocator_.Mark(ref, slot_bytes);
  }

  absl::Status WriteMany(std::span<ExtentWrite> writes) {
    IoMerger merger(IoOp::kWrite);
    {
      absl::MutexLock lock(&mutex_);
      for (ExtentWrite& write : writes) {
        // A write only reads the buffer.
        std::span<std::byte> bytes(const_cast<std::byte*>(write.image.data()), write.image.size());
        TK_ASSIGN_OR_RETURN(uint64_t offset, OffsetOf(write.ref, 0, bytes.size()));
        if (allocator_.Find(write.ref.file)->poisoned) {
          return Unavailable("write slot {}: the file is out of use since a sync of it failed",
                             ToString(write.ref));
        }
        merger.Add({write.ref.file, offset, bytes, &write.done});
      }
    }
    return merger.Submit(*device_);
  }

  absl::Status ReadMany(std::span<ExtentRead> reads) {
    IoMerger merger(IoOp::kRead);
    {
      absl::MutexLock lock(&mutex_);
      for (ExtentRead& read : reads) {
        TK_ASSIGN_OR_RETURN(uint64_t offset, OffsetOf(read.ref, read.offset, read.buffer.size()));
        merger.Add({read.ref.file, offset, read.buffer, &read.done});
      }
    }
    return merger.Submit(*device_);
  }

  absl::Status Sync(std::span<const uint32_t> files,
                    absl::AnyInvocable<void(const absl::Status&)> done);

  absl::StatusOr<uint32_t> DeleteFreeFiles() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &Impl::NotChanging));
    uint32_t deleted = 0;
    while (uint32_t file = allocator_.FreeFileBeside(0)) {
      TK_RETURN_IF_ERROR(DeleteFile(file));
      ++deleted;
    }
    return deleted;
  }

  std::vector<uint32_t> FilesWithDamagedHeaders() const {
    absl::MutexLock lock(&mutex_);
    return {damaged_headers_.begin(), damaged_headers_.end()};
  }

  absl::Status RepairHeaders() {
    for (uint32_t file : FilesWithDamagedHeaders()) {
      ExtentFileHeader header;
      {
        absl::MutexLock lock(&mutex_);
        const ExtentAllocator::File* known = allocator_.Find(file);
        if (known == nullptr || known->slot_bytes == 0) continue;
        header = HeaderOf(file, known->slot_bytes, known->file_bytes);
      }
      TK_RETURN_IF_ERROR(WriteHeader(header));
      absl::MutexLock lock(&mutex_);
      damaged_headers_.erase(file);
    }
    return absl::OkStatus();
  }

  ExtentUsage Usage();
  std::vector<ExtentFileUsage> Files() const;
  uint32_t CheapestFileToEmpty(uint64_t slot_bytes) const;

  bool IsPoisoned(uint32_t file) const {
    absl::MutexLock lock(&mutex_);
    const ExtentAllocator::File* known = allocator_.Find(file);
    return known != nullptr && known->poisoned;
  }
  uint64_t SlotBytes(uint32_t file) const {
    absl::MutexLock lock(&mutex_);
    const ExtentAllocator::File* known = allocator_.Find(file);
    return known == nullptr ? 0 : known->slot_bytes;
  }

 private:
  bool NotChanging() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !changing_files_; }

  ExtentFileHeader HeaderOf(uint32_t file, uint64_t slot_bytes, uint64_t file_bytes) const {
    return {.file = file,
            .slot_count = static_cast<uint32_t>(
                std::min<uint64_t>(SlotsIn(file_bytes, slot_bytes), kMaxSlotsPerFile)),
            .store_id = options_.store_id,
            .slot_bytes = slot_bytes,
            .file_bytes = file_bytes,
            .created_unix_s = options_.clock->UnixSeconds()};
  }

  absl::Status OpenFile(const DeviceFile& file);
  absl::Status MakeFile(uint64_t slot_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status MakeRoom(uint64_t slot_bytes, uint64_t* file_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status DeleteFile(uint32_t file) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CapReached(uint64_t slot_bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<uint64_t> OffsetOf(ExtentRef ref, uint64_t offset, uint64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status WriteHeader(const ExtentFileHeader& header) {
    AlignedBuffer block(kExtentHeaderBytes);
    EncodeExtentFileHeader(header, block.span());
    TK_RETURN_IF_ERROR(WriteBlocking(*device_, header.file, 0, block.span()));
    return SyncBlocking(*device_, header.file);
  }

  void SyncDone(uint32_t file, const absl::Status& status) {
    if (status.ok()) return;
    absl::MutexLock lock(&mutex_);
    allocator_.Poison(file);
  }

  BlockDevice* const device_;
  const ExtentStoreOptions options_;
  const uint64_t file_bytes_;  // of a usual new file

  mutable absl::Mutex mutex_;
  ExtentAllocator allocator_ ABSL_GUARDED_BY(mutex_);
  WriteBudget budget_ ABSL_GUARDED_BY(mutex_);
  std::set<uint32_t> damaged_headers_ ABSL_GUARDED_BY(mutex_);
  uint32_t next_file_ ABSL_GUARDED_BY(mutex_);
  // One caller at a time makes or deletes files, with the mutex released meanwhile.
  bool changing_files_ ABSL_GUARDED_BY(mutex_) = false;
};

absl::Status ExtentStore::Impl::OpenFile(const DeviceFile& file) {
  TK_ASSIGN_OR_RETURN(uint64_t bytes, device_->OpenFile(file.file));
  bytes = RoundDown(bytes, kBlockBytes);
  AlignedBuffer block(kExtentHeaderBytes);
  absl::Status read = bytes < kExtentHeaderBytes
                          ? DataLoss("extent file {}: {} bytes", file.file, bytes)
                          : ReadBlocking(*device_, file.file, 0, block.span());
  absl::StatusOr<ExtentFileHeader> header =
      read.ok() ? DecodeExtentFileHeader(block.span(), file.file) : read;
  absl::MutexLock lock(&mutex_);
  next_file_ = std::max(next_file_, file.file + 1);
  if (header.ok() && header->store_id != options_.store_id) {
    return FailedPrecondition("extent file {} belongs to another store", file.file);
  }
  if (absl::IsFailedPrecondition(header.status())) return header.status();
  // What lies past the end of a file that was cut short is out of range for MarkUsed.
  if (header.ok()) {
    allocator_.AddFile(file.file, header->slot_bytes, std::min(bytes, header->file_bytes));
  } else {
    allocator_.AddFile(file.file, 0, bytes);
    damaged_headers_.insert(file.file);
  }
  return absl::OkStatus();
}

absl::Status ExtentStore::Impl::CapReached(uint64_t slot_bytes) const {
  return ResourceExhausted(
      "disk cap of {} bytes: {} in {} files, none with a free slot of {} bytes",
      options_.capacity_bytes, allocator_.file_bytes(), allocator_.files().size(), slot_bytes);
}

// Finds the size of a new file, deleting free files of other classes while the cap needs it.
absl::Status ExtentStore::Impl::MakeRoom(uint64_t slot_bytes, uint64_t* file_bytes) {
  uint64_t slots = SlotsIn(file_bytes_, slot_bytes);
  slots = std::clamp<uint64_t>(slots, kMinSlotsPerFile, kMaxSlotsPerFile);
  while (true) {
    uint64_t used = allocator_.file_bytes();
    uint64_t left = options_.capacity_bytes > used ? options_.capacity_bytes - used : 0;
    uint64_t fitting = std::min(slots, SlotsIn(left, slot_bytes));
    uint32_t victim = fitting < slots ? allocator_.FreeFileBeside(slot_bytes) : 0;
    if (victim == 0 && (fitting == 0 || allocator_.files().size() >= kMaxExtentFiles)) {
      return CapReached(slot_bytes);
    }
    if (victim == 0) {
      *file_bytes = SlotOffset(static_cast<uint32_t>(fitting), slot_bytes);
      return absl::OkStatus();
    }
    TK_RETURN_IF_ERROR(DeleteFile(victim));
  }
}

absl::Status ExtentStore::Impl::MakeFile(uint64_t slot_bytes) {
  uint64_t file_bytes = 0;
  TK_RETURN_IF_ERROR(MakeRoom(slot_bytes, &file_bytes));
  uint32_t file = next_file_++;
  changing_files_ = true;
  mutex_.Unlock();
  absl::Status made = device_->CreateFile(file, file_bytes);
  if (made.ok()) {
    made = WriteHeader(HeaderOf(file, slot_bytes, file_bytes));
    // A file without a header is of no use; should deletion fail too, recovery deletes it.
    if (!made.ok()) device_->DeleteFile(file).IgnoreError();
  }
  mutex_.Lock();
  changing_files_ = false;
  TK_RETURN_IF_ERROR(made);
  allocator_.AddFile(file, slot_bytes, file_bytes);
  return absl::OkStatus();
}

// Releases the mutex meanwhile. A file that cannot be deleted is kept, and counted.
absl::Status ExtentStore::Impl::DeleteFile(uint32_t file) {
  ExtentAllocator::File known = *allocator_.Find(file);
  allocator_.RemoveFile(file);
  changing_files_ = true;
  mutex_.Unlock();
  absl::Status deleted = device_->DeleteFile(file);
  mutex_.Lock();
  changing_files_ = false;
  if (deleted.ok() || absl::IsNotFound(deleted)) {
    damaged_headers_.erase(file);
    return absl::OkStatus();
  }
  allocator_.AddFile(file, known.slot_bytes, known.file_bytes);
  allocator_.Poison(file);
  return deleted;
}

absl::StatusOr<uint64_t> ExtentStore::Impl::OffsetOf(ExtentRef ref, uint64_t offset,
                                                     uint64_t bytes) const {
  if (!allocator_.IsUsed(ref)) return InvalidArgument("slot {} is not in use", ToString(ref));
  uint64_t slot_bytes = allocator_.Find(ref.file)->slot_bytes;
  if (bytes == 0 || offset > slot_bytes || bytes > slot_bytes - offset) {
    return InvalidArgument("slot {} of {} bytes: I/O of {} bytes at {}", ToString(ref), slot_bytes,
                           bytes, offset);
  }
  return SlotOffset(ref.slot, slot_bytes) + offset;
}

absl::Status ExtentStore::Impl::Sync(std::span<const uint32_t> files,
                                     absl::AnyInvocable<void(const absl::Status&)> done) {
  struct Waiting {
    explicit Waiting(size_t count) : left(count) {}
    absl::AnyInvocable<void(const absl::Status&)> done;
    absl::Mutex mutex;
    size_t left ABSL_GUARDED_BY(mutex);
    absl::Status first_error ABSL_GUARDED_BY(mutex);
  };
  absl::Status poisoned;
  std::vector<uint32_t> to_sync;
  {
    absl::MutexLock lock(&mutex_);
    for (uint32_t file : files) {
      const ExtentAllocator::File* known = allocator_.Find(file);
      if (known == nullptr) return InvalidArgument("sync file {}: no such file", file);
      if (!known->poisoned) {
        to_sync.push_back(file);
      } else {
        poisoned = Unavailable("sync file {}: out of use since a sync of it failed", file);
      }
    }
  }
  if (to_sync.empty()) {
    done(poisoned);
    return absl::OkStatus();
  }
  // shared_ptr: the completions of the files' syncs share it; the last one frees it.
  auto waiting = std::make_shared<Waiting>(to_sync.size());
  {
    absl::MutexLock lock(&waiting->mutex);
    waiting->first_error = poisoned;
  }
  waiting->done = std::move(done);
  std::vector<IoRequest> requests;
  for (uint32_t file : to_sync) {
    auto finish = [this, waiting, file](const absl::Status& status, uint64_t) {
      SyncDone(file, status);
      absl::Status result;
      {
        absl::MutexLock lock(&waiting->mutex);
        waiting->first_error.Update(status);
        if (--waiting->left > 0) return;
        result = waiting->first_error;
      }
      waiting->done(result);
    };
    requests.push_back({.op = IoOp::kSync, .file = file, .done = std::move(finish)});
  }
  return device_->Submit(requests);
}

ExtentUsage ExtentStore::Impl::Usage() {
  absl::MutexLock lock(&mutex_);
  ExtentUsage usage{.capacity_bytes = options_.capacity_bytes,
                    .file_bytes = allocator_.file_bytes(),
                    .budget_left_bytes = budget_.Left()};
  std::map<uint64_t, ExtentClassUsage> classes;
  for (const auto& [number, file] : allocator_.files()) {
    ++usage.files;
    usage.poisoned_files += file.poisoned ? 1 : 0;
    usage.used_bytes += file.used * file.slot_bytes;
    uint32_t out_of_use = file.quarantined + (file.poisoned ? file.free() : 0);
    usage.quarantined_bytes += out_of_use * file.slot_bytes;
    ExtentClassUsage& one = classes[file.slot_bytes];
    one.slot_bytes = file.slot_bytes;
    ++one.files;
    one.slots += file.slots;
    one.used_slots += file.used;
  }
  for (const auto& [bytes, one] : classes) usage.classes.push_back(one);
  return usage;
}

std::vector<ExtentFileUsage> ExtentStore::Impl::Files() const {
  absl::MutexLock lock(&mutex_);
  std::vector<ExtentFileUsage> files;
  for (const auto& [number, file] : allocator_.files()) {
    files.push_back({.file = number,
                     .slot_bytes = file.slot_bytes,
                     .file_bytes = file.file_bytes,
                     .slots = file.slots,
                     .used_slots = file.used,
                     .quarantined_slots = file.quarantined,
                     .poisoned = file.poisoned});
  }
  return files;
}

uint32_t ExtentStore::Impl::CheapestFileToEmpty(uint64_t slot_bytes) const {
  absl::MutexLock lock(&mutex_);
  uint32_t best = 0;
  uint32_t best_used = UINT32_MAX;
  for (const auto& [number, file] : allocator_.files()) {
    if (file.slot_bytes == slot_bytes && !file.poisoned) continue;
    if (file.used < best_used) {
      best = number;
      best_used = file.used;
    }
  }
  return best;
}

absl::StatusOr<std::unique_ptr<ExtentStore>> ExtentStore::Open(BlockDevice* device,
                                                               const ExtentStoreOptions& options) {
  if (options.file_bytes % kBlockBytes != 0) {
    return InvalidArgument("file_bytes {}: not a multiple of {}", options.file_bytes, kBlockBytes);
  }
  if (options.file_bytes != 0 && options.file_bytes < 2 * kBlockBytes) {
    return InvalidArgument("file_bytes {}: less than a header and a block", options.file_bytes);
  }
  auto impl = std::make_unique<Impl>(device, options);
  TK_RETURN_IF_ERROR(impl->OpenFiles());
  return std::unique_ptr<ExtentStore>(new ExtentStore(std::move(impl)));
}

ExtentStore::ExtentStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExtentStore::~ExtentStore() = default;

absl::StatusOr<ExtentRef> ExtentStore::Allocate(uint64_t slot_bytes, WritePurpose purpose) {
  return impl_->Allocate(slot_bytes, purpose);
}
void ExtentStore::Free(ExtentRef ref) { impl_->Free(ref); }
void ExtentStore::Quarantine(ExtentRef ref) { impl_->Quarantine(ref); }
absl::Status ExtentStore::MarkUsed(ExtentRef ref, uint64_t slot_bytes) {
  return impl_->MarkUsed(ref, slot_bytes);
}
absl::Status ExtentStore::Write(ExtentRef ref, std::span<const std::byte> image, IoDone done) {
  ExtentWrite write{ref, image, std::move(done)};
  return impl_->WriteMany({&write, 1});
}
absl::Status ExtentStore::WriteMany(std::span<ExtentWrite> writes) {
  return impl_->WriteMany(writes);
}
absl::Status ExtentStore::Read(ExtentRef ref, uint64_t offset, std::span<std::byte> buffer,
                               IoDone done) {
  ExtentRead read{ref, offset, buffer, std::move(done)};
  return impl_->ReadMany({&read, 1});
}
absl::Status ExtentStore::ReadMany(std::span<ExtentRead> reads) { return impl_->ReadMany(reads); }
absl::Status ExtentStore::Sync(std::span<const uint32_t> files,
                               absl::AnyInvocable<void(const absl::Status&)> done) {
  return impl_->Sync(files, std::move(done));
}
absl::StatusOr<uint32_t> ExtentStore::DeleteFreeFiles() { return impl_->DeleteFreeFiles(); }
std::vector<uint32_t> ExtentStore::FilesWithDamagedHeaders() const {
  return impl_->FilesWithDamagedHeaders();
}
absl::Status ExtentStore::RepairHeaders() { return impl_->RepairHeaders(); }
ExtentUsage ExtentStore::Usage() const { return impl_->Usage(); }
std::vector<ExtentFileUsage> ExtentStore::Files() const { return impl_->Files(); }
uint32_t ExtentStore::CheapestFileToEmpty(uint64_t slot_bytes) const {
  return impl_->CheapestFileToEmpty(slot_bytes);
}
bool ExtentStore::IsPoisoned(uint32_t file) const { return impl_->IsPoisoned(file); }
uint64_t ExtentStore::SlotBytes(uint32_t file) const { return impl_->SlotBytes(file); }

}  // namespace turnkeep
