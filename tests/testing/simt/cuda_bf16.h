// CUDA's bfloat16 for simt.h: as much of it as the kernels use.
#pragma once

#include "kernels/element.h"
#include "testing/simt/simt.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {turnkeep::BFloat16ToFloat(pair.x.bits), turnkeep::BFloat16ToFloat(pair.y.bits)};
}
