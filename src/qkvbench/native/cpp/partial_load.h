// Loads `count` numbers and pads with zeros, for ISAs without masked loads.
#pragma once

template <class Number>
INLINE Vector to_fp32(const Number* x, int count) {
    Number some[WIDTH] = {};
    for (int i = 0; i < count; ++i) some[i] = x[i];
    return to_fp32(some);
}
