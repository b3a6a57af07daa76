#include "disk_tier/index_batch.h"

#include <algorithm>
#include <utility>

namespace turnkeep {

void IndexBatch::Add(IndexFamily family, bool is_delete, std::string key, std::string value) {
  bytes_ += key.size() + value.size();
  operations_.push_back({family, is_delete, std::move(key), std::move(value)});
}

void IndexBatch::PutChunk(const ChunkRecord& record) {
  highest_file_ = std::max(highest_file_, record.extent.file);
  Add(IndexFamily::kChunks, false, ChunkKey(record.id), EncodeChunkRecord(record));
}

void IndexBatch::DeleteChunk(const ChunkId& id) {
  Add(IndexFamily::kChunks, true, ChunkKey(id), {});
}

void IndexBatch::PutSession(const SessionRecord& record) {
  Add(IndexFamily::kSessions, false, SessionKey(record.number), EncodeSessionRecord(record));
}

void IndexBatch::DeleteSession(uint64_t number, uint32_t span_blocks) {
  Add(IndexFamily::kSessions, true, SessionKey(number), {});
  DeleteSpanBlocks(number, 0, span_blocks);
}

void IndexBatch::PutSpanBlock(const SpanBlock& block) {
  Add(IndexFamily::kSpans, false, SpanKey(block.session, block.block_index),
      EncodeSpanBlock(block));
}

void IndexBatch::DeleteSpanBlocks(uint64_t session, uint32_t first, uint32_t end) {
  for (uint32_t i = first; i < end; ++i) Add(IndexFamily::kSpans, true, SpanKey(session, i), {});
}

void IndexBatch::PutTenant(const TenantRecord& record) {
  Add(IndexFamily::kTenants, false, TenantKeyBytes(record.number), EncodeTenantRecord(record));
}

void IndexBatch::PutLayout(const LayoutRecord& record) {
  Add(IndexFamily::kLayouts, false, LayoutKey(record.number), EncodeLayoutRecord(record));
}

void IndexBatch::SetNextEpoch(uint64_t epoch) {
  Add(IndexFamily::kMeta, false, MetaKeyBytes(MetaKey::kNextEpoch),
      EncodeMetaRecord({MetaKey::kNextEpoch, epoch}));
}

void IndexBatch::SetNextSession(uint64_t number) {
  Add(IndexFamily::kMeta, false, MetaKeyBytes(MetaKey::kNextSession),
      EncodeMetaRecord({MetaKey::kNextSession, number}));
}

void IndexBatch::SetCleanShutdown(bool clean) {
  Add(IndexFamily::kMeta, false, MetaKeyBytes(MetaKey::kCleanShutdown),
      EncodeMetaRecord({MetaKey::kCleanShutdown, clean ? uint64_t{1} : uint64_t{0}}));
}

void IndexBatch::DeleteRaw(IndexFamily family, const std::string& key) {
  Add(family, true, key, {});
}

}  // namespace turnkeep
