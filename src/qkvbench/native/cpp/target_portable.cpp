// Any processor: no instruction is named. On ARM this is NEON.
#include "base.h"

namespace {
#include "vector_portable.h"
#include "partial.h"
#include "attend.h"
#include "stretch.h"
#include "floats.h"
#include "product.h"
#include "target.h"
}  // namespace

#if defined(__ARM_NEON)
extern const Target TARGET_PORTABLE = {"neon", attend, read, multiply, lay_out, product};
#else
extern const Target TARGET_PORTABLE = {"portable", attend, read, multiply, lay_out, product};
#endif
