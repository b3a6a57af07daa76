// IndexBatch: typed changes that become visible together or not at all.
//
// Not thread-safe. Records are encoded as they are put, so nothing is referenced later.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "disk_tier/index_record.h"

namespace turnkeep {

class IndexBatch {
 public:
  void PutChunk(const ChunkRecord& record);
  void DeleteChunk(const ChunkId& id);
  void PutSession(const SessionRecord& record);
  // The record and its span blocks 0..span_blocks-1.
  void DeleteSession(uint64_t number, uint32_t span_blocks);
  // An append rewrites the last block and adds new ones; full blocks never change.
  void PutSpanBlock(const SpanBlock& block);
  // Span blocks first..end-1: what a truncation or a shorter rewrite leaves behind.
  void DeleteSpanBlocks(uint64_t session, uint32_t first, uint32_t end);
  void PutTenant(const TenantRecord& record);
  void PutLayout(const LayoutRecord& record);
  void SetNextEpoch(uint64_t epoch);
  void SetNextSession(uint64_t number);
  void SetCleanShutdown(bool clean);
  // Removes a record that could not be decoded, by its key as stored.
  void DeleteRaw(IndexFamily family, const std::string& key);

  bool empty() const { return operations_.empty(); }
  size_t size() const { return operations_.size(); }
  uint64_t bytes() const { return bytes_; }  // keys and values

  struct Operation {
    IndexFamily family = IndexFamily::kMeta;
    bool is_delete = false;
    std::string key;
    std::string value;
  };
  const std::vector<Operation>& operations() const { return operations_; }
  // The highest file number that a put chunk names; the index keeps numbers from being reused.
  uint32_t highest_file() const { return highest_file_; }

 private:
  void Add(IndexFamily family, bool is_delete, std::string key, std::string value);

  std::vector<Operation> operations_;
  uint64_t bytes_ = 0;
  uint32_t highest_file_ = 0;
};

}  // namespace turnkeep
