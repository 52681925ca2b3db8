// `count` numbers and then zeros, for targets that cannot read under a mask.

template <class Number>
INLINE Vector from(const Number* x, int count) {
    Number some[WIDTH] = {};
    for (int i = 0; i < count; ++i) some[i] = x[i];
    return from(some);
}

// A group of int4 times its scale; in two's complement, shifts right keep the sign.
INLINE void unpack_group(const uint8_t* bytes, float scale, float* into) {
    for (int i = 0; i < QKV_GROUP / 2; ++i) {
        into[2 * i] = float(int8_t(bytes[i] << 4) >> 4) * scale;
        into[2 * i + 1] = float(int8_t(bytes[i]) >> 4) * scale;
    }
}
