#include "disk_tier/extent_io.h"

#include <utility>

#include "core/status.h"
#include "disk_tier/extent_store.h"

namespace turnkeep {
namespace {

struct Part {
  uint64_t bytes = 0;
  IoDone done;
};

}  // namespace

void IoMerger::Add(const Piece& piece) {
  if (!groups_.empty()) {
    const Piece& last = groups_.back().back();
    if (last.file == piece.file && last.offset + last.buffer.size() == piece.offset &&
        last.buffer.data() + last.buffer.size() == piece.buffer.data() &&
        group_bytes_ + piece.buffer.size() <= kMaxMergedIoBytes) {
      groups_.back().push_back(piece);
      group_bytes_ += piece.buffer.size();
      return;
    }
  }
  groups_.push_back({piece});
  group_bytes_ = piece.buffer.size();
}

absl::Status IoMerger::Submit(BlockDevice& device) {
  std::vector<IoRequest> requests;
  std::vector<std::vector<Part>*> all_parts;  // owned by the requests' completions
  requests.reserve(groups_.size());
  for (const std::vector<Piece>& group : groups_) {
    auto parts = std::make_unique<std::vector<Part>>();
    uint64_t total = 0;
    for (const Piece& piece : group) {
      parts->push_back({piece.buffer.size(), std::move(*piece.done)});
      total += piece.buffer.size();
    }
    all_parts.push_back(parts.get());
    auto finish = [op = op_, total, parts = std::move(parts)](const absl::Status& status,
                                                              uint64_t bytes) {
      absl::Status whole = status;
      if (status.ok() && bytes != total) {
        whole = Unavailable("{}: {} of {} bytes transferred", NameOf(op), bytes, total);
      }
      for (Part& part : *parts) part.done(whole, whole.ok() ? part.bytes : 0);
    };
    requests.push_back({.op = op_,
                        .file = group.front().file,
                        .offset = group.front().offset,
                        .buffer = {group.front().buffer.data(), total},
                        .done = std::move(finish)});
  }
  absl::Status status = device.Submit(requests);
  if (status.ok()) return status;
  for (size_t g = 0; g < groups_.size(); ++g) {  // the caller keeps what was not started
    for (size_t i = 0; i < groups_[g].size(); ++i) {
      *groups_[g][i].done = std::move((*all_parts[g])[i].done);
    }
  }
  return status;
}

}  // namespace turnkeep
