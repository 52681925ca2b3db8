// Every type by way of fp32, turned or not.

constexpr Way PLAIN[] = {
    {4, 1, lay_out_floats, attend_tile<Floats, Floats, Fp32>},
    {2, 1, lay_out_floats, attend_tile<Floats, Floats, Bf16>},
    {2, 1, lay_out_floats, attend_tile<Floats, Floats, Fp16>},
    {1, 1, lay_out_floats, attend_tile<Floats, Floats, Int8>},
};
constexpr const Way (&TURNED)[4] = PLAIN;
