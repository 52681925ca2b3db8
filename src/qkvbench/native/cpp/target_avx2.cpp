// AVX2 with FMA and F16C: x86 since about 2013.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx2.h"
#include "partial.h"
#include "attend.h"
#include "stretch.h"
#include "floats.h"
#include "product.h"
#include "target.h"
}  // namespace

extern const Target TARGET_AVX2 = {"avx2", attend, read, multiply, lay_out, product};
