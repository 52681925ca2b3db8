// AVX-512 without dot products of bf16: Intel since Skylake-X.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx512.h"
#include "attend.h"
#include "stretch.h"
#include "floats.h"
#include "product.h"
#include "target.h"
}  // namespace

extern const Target TARGET_AVX512 = {"avx512", attend, read, multiply, lay_out, product};
