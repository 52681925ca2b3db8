// `count` numbers and then zeros, for targets that cannot read under a mask.

template <class Number>
INLINE Vector from(const Number* x, int count) {
    Number some[WIDTH] = {};
    for (int i = 0; i < count; ++i) some[i] = x[i];
    return from(some);
}
