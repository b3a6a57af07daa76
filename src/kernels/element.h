// One KV element at a time: from and to float, for every storage type. For references, table
// set-up and the ends of rows; the bulk is converted by the kernels themselves.
//
// To float is exact. From float rounds to nearest, ties to even. float16, bfloat16 and fp8 e5m2
// overflow to infinity; fp8 e4m3, which has none, to NaN; int8 saturates, and a NaN becomes 0. An
// int8 or fp8 value is the stored one: scales are the caller's.
//
// Thread-safe: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layout.h"

namespace turnkeep {

float Float16ToFloat(uint16_t bits);
float BFloat16ToFloat(uint16_t bits);
float Fp8E4M3ToFloat(uint8_t bits);  // OCP e4m3: no infinities, NaN is S.1111.111
float Fp8E5M2ToFloat(uint8_t bits);

uint16_t FloatToFloat16(float value);
uint16_t FloatToBFloat16(float value);
uint8_t FloatToFp8E4M3(float value);
uint8_t FloatToFp8E5M2(float value);

// `element` points to DTypeBytes(dtype) bytes of any alignment.
float LoadElement(DType dtype, const std::byte* element);
void StoreElement(DType dtype, float value, std::byte* element);

}  // namespace turnkeep
