// Every bound of the system, in one place. Full means ResourceExhausted or
// InvalidArgument with the limit's name, never growth.
#pragma once

#include <cstdint>

#include "core/units.h"

namespace turnkeep {

// Layouts.
inline constexpr uint32_t kMinChunkTokens = 16;
inline constexpr uint32_t kMaxChunkTokens = 512;
inline constexpr uint32_t kDefaultChunkTokens = 64;
inline constexpr uint32_t kMaxLayers = 1024;
inline constexpr uint32_t kMaxKvHeads = 4096;
inline constexpr uint32_t kMaxHeadDim = 65536;
inline constexpr uint32_t kMaxRank = 65536;
inline constexpr uint32_t kMaxParallelWidth = 4096;
inline constexpr uint64_t kMaxStateBytes = 256 * kMiB;
inline constexpr uint64_t kMaxLayerPageBytes = 1 * kGiB;
inline constexpr uint64_t kMaxChunkBytes = 4 * kGiB;
inline constexpr uint32_t kMaxNameBytes = 512;  // model, revision, adapter
inline constexpr uint32_t kMaxLayouts = 1024;
inline constexpr uint64_t kMaxLayoutEncodingBytes = 4 * kMiB;

// Sessions and tenants.
inline constexpr uint32_t kMaxSessionNameBytes = 256;
inline constexpr uint32_t kMaxTenants = 1024;
inline constexpr uint32_t kMaxSessions = 1u << 24;
inline constexpr uint64_t kMaxSessionTokens = uint64_t{1} << 24;
inline constexpr uint32_t kMaxBlockHashBytes = 64;

// Tickets and queues.
inline constexpr uint32_t kMaxTicketsPerConnection = 256;
inline constexpr uint32_t kMaxTickets = 4096;
inline constexpr uint32_t kMaxHeldChunks = 65'536;  // of a restore
inline constexpr uint32_t kMaxWaitingSaves = 256;
inline constexpr uint32_t kMaxIoQueueDepth = 256;

// Wire.
inline constexpr uint32_t kMaxFrameBytes = 72 * kMiB;  // a 16 Mi-token prompt and its envelope
inline constexpr uint32_t kMaxConnections = 1024;
inline constexpr uint32_t kMaxOutboundQueueBytes = 256 * kMiB;
inline constexpr uint32_t kMaxBusyPollMicros = 10'000;

// Catalog. An index is 32 bits and two values are reserved.
inline constexpr uint32_t kMaxChunks = 0xFFFFFF00u;

}  // namespace turnkeep
