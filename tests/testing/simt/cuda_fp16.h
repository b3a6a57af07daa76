// CUDA's half precision for simt.h: as much of it as the kernels use.
#pragma once

#include "kernels/element.h"
#include "testing/simt/simt.h"

struct __half {
  uint16_t bits;
};
struct __half2 {
  __half x, y;
};
inline float2 __half22float2(__half2 pair) {
  return {turnkeep::Float16ToFloat(pair.x.bits), turnkeep::Float16ToFloat(pair.y.bits)};
}
