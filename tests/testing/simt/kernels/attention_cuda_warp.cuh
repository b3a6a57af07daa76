// What src/kernels/attention_cuda_warp.cuh says in PTX, after the PTX ISA's tables of fragments,
// for simt.h. Lane 4 · g + t.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace turnkeep {

inline void CopyAsync16(void* to, const void* from, bool valid) {
  simt::AsyncCopy(to, from, 16, !valid);
}
inline void CommitCopies() { simt::AsyncCommit(); }
inline void WaitForAllButOne() { simt::AsyncWait(1); }
inline void WaitForCopies() {
  simt::AsyncCommit();
  simt::AsyncWait(0);
}

namespace simt_warp {

// The rows whose addresses lanes 8 · matrix … give.
inline const uint16_t* Row(const simt::WarpSlots& slots, uint32_t matrix, uint32_t row) {
  return reinterpret_cast<const uint16_t*>(slots.words[8 * matrix + row][0]);
}

}  // namespace simt_warp

inline void LoadMatrix4(uint32_t (&r)[4], const void* from) {
  simt::WarpSlots& slots = simt::Slots();
  slots.words[simt::Lane()][0] = reinterpret_cast<uintptr_t>(from);
  simt::WarpBarrier();
  const uint32_t g = simt::Lane() / 4;
  const uint32_t t = simt::Lane() % 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint16_t* const row = simt_warp::Row(slots, i, g);
    r[i] = row[2 * t] | uint32_t{row[2 * t + 1]} << 16;
  }
  simt::WarpBarrier();
}
inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* from) {
  simt::WarpSlots& slots = simt::Slots();
  slots.words[simt::Lane()][0] = reinterpret_cast<uintptr_t>(from);
  simt::WarpBarrier();
  const uint32_t g = simt::Lane() / 4;
  const uint32_t t = simt::Lane() % 4;
  for (uint32_t i = 0; i < 4; ++i)
    r[i] = simt_warp::Row(slots, i, 2 * t)[g] | uint32_t{simt_warp::Row(slots, i, 2 * t + 1)[g]}
                                                    << 16;
  simt::WarpBarrier();
}

template <class T>
float ToFloat(uint16_t bits);
template <>
inline float ToFloat<__half>(uint16_t bits) {
  return Float16ToFloat(bits);
}
template <>
inline float ToFloat<__nv_bfloat16>(uint16_t bits) {
  return BFloat16ToFloat(bits);
}

// m16n8k16: a[0] is row g, columns 2t and 2t + 1; a[1] row g + 8; a[2] and a[3] the same eight
// columns further. b0 is rows 2t and 2t + 1 of column g, b1 eight rows further.
template <class T>
void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::WarpSlots& slots = simt::Slots();
  uint64_t* const mine = slots.words[simt::Lane()];
  for (int i = 0; i < 4; ++i) mine[i] = a[i];
  mine[4] = b0;
  mine[5] = b1;
  simt::WarpBarrier();
  const auto half = [](uint64_t pair, uint32_t i) {
    return ToFloat<T>(static_cast<uint16_t>(pair >> (16 * i)));
  };
  const auto a_at = [&](uint32_t row, uint32_t k) {
    const uint32_t lane = row % 8 * 4 + k % 8 / 2;
    return half(slots.words[lane][row / 8 + k / 8 * 2], k % 2);
  };
  const auto b_at = [&](uint32_t k, uint32_t column) {
    return half(slots.words[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
  };
  const uint32_t g = simt::Lane() / 4;
  const uint32_t t = simt::Lane() % 4;
  for (uint32_t i = 0; i < 4; ++i)
    for (uint32_t k = 0; k < 16; ++k) c[i] += a_at(g + i / 2 * 8, k) * b_at(k, 2 * t + i % 2);
  simt::WarpBarrier();
}

template <class T>
uint32_t Pack(float low, float high);
template <>
inline uint32_t Pack<__half>(float low, float high) {
  return FloatToFloat16(low) | uint32_t{FloatToFloat16(high)} << 16;
}
template <>
inline uint32_t Pack<__nv_bfloat16>(float low, float high) {
  return FloatToBFloat16(low) | uint32_t{FloatToBFloat16(high)} << 16;
}

}  // namespace turnkeep
