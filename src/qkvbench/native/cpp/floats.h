// Every type by way of fp32, turned or not.

constexpr Way PLAIN[] = {
    way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats),
    way<Floats, Floats, Bf16>(1, lay_out_floats, tell_floats),
    way<Floats, Floats, Fp16>(1, lay_out_floats, tell_floats),
    way<Floats, Floats, Int8>(1, lay_out_floats, tell_floats),
    unpacked(way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats)),
};
constexpr const Way (&TURNED)[5] = PLAIN;
