// ExtentAllocator: which slots of which files are in use. Memory only, no I/O.
//
// Slots are given lowest first from the file of the class that has the fewest free ones.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <absl/status/status.h>

#include "disk_tier/extent_ref.h"
#include "disk_tier/extent_store.h"

namespace turnkeep {

class ExtentAllocator {
 public:
  // A wholly free file. `slot_bytes` 0: not known yet, see Mark.
  void AddFile(uint32_t file, uint64_t slot_bytes, uint64_t file_bytes);
  // A file without used slots.
  void RemoveFile(uint32_t file);

  // Nothing when no file of the class that may be written has a free slot.
  std::optional<ExtentRef> Take(uint64_t slot_bytes);
  // Free and Quarantine: `ref` is a used slot.
  void Free(ExtentRef ref);
  void Quarantine(ExtentRef ref);
  // Claims a certain slot; InvalidArgument says why it cannot be. A file whose slot
  // size is not known takes it from here.
  absl::Status Mark(ExtentRef ref, uint64_t slot_bytes);
  // Nothing is taken from the file any more.
  void Poison(uint32_t file);

  struct File {
    uint64_t slot_bytes = 0;
    uint64_t file_bytes = 0;
    uint32_t slots = 0;
    uint32_t used = 0;
    uint32_t quarantined = 0;
    bool poisoned = false;
    std::vector<uint64_t> taken;   // a bit a slot: used or quarantined
    std::vector<uint64_t> bad;     // a bit a slot: quarantined; empty when none is
    uint32_t first_free_word = 0;  // no word below has a free bit

    uint32_t free() const { return slots - used - quarantined; }
  };
  const File* Find(uint32_t file) const;
  const std::map<uint32_t, File>& files() const { return files_; }
  bool IsUsed(ExtentRef ref) const;

  // A file without used slots that Take(slot_bytes) would not use; 0 if none.
  uint32_t FreeFileBeside(uint64_t slot_bytes) const;
  uint64_t file_bytes() const { return file_bytes_; }

 private:
  void Adopt(uint32_t number, File& file, uint64_t slot_bytes);
  // Keeps `open_` in step around a change of a file.
  void Leave(uint32_t number, const File& file);
  void Enter(uint32_t number, const File& file);

  std::map<uint32_t, File> files_;
  // By class: (free slots, file number) of the files with free slots that may be written.
  std::map<uint64_t, std::set<std::pair<uint32_t, uint32_t>>> open_;
  uint64_t file_bytes_ = 0;
};

}  // namespace turnkeep
