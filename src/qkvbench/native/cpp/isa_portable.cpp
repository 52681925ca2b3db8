// Any processor: vectors of the compiler, no intrinsics. On ARM the compiler uses NEON.
#include "base.h"

namespace {
#include "vector_portable.h"
#include "partial_load.h"
#include "attend.h"
#include "chunk.h"
#include "fp32_formats.h"
#include "linear.h"
#include "isa.h"
}  // namespace

#if defined(__ARM_NEON)
extern const Isa ISA_PORTABLE = {"neon", attend, read, multiply, pack_rows, linear};
#else
extern const Isa ISA_PORTABLE = {"portable", attend, read, multiply, pack_rows, linear};
#endif
