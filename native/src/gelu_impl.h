// GELU, on top of the sixteen-lane `Vec` of an instruction set. The polynomials are from fit_gelu.py.

#pragma once

namespace {

template <int count>
inline Vec polynomial(const float (&coefficients)[count], Vec x) {
  Vec result = all(coefficients[count - 1]);
#pragma GCC unroll 8
  for (int i = count - 2; i >= 0; --i) result = multiply_add(result, x, all(coefficients[i]));
  return result;
}

// Of 1 / Phi(-a), 0 <= a <= 6; above, it grows on.
constexpr float eighth_root[] = {1.0905083618020017f,     0.10875201062420235f,    0.04887037010459575f,
                                 0.009315868652357949f,   0.0011255467021433346f,  8.753830163183221e-05f,
                                 0.00011807356842073041f, -2.037775937510644e-05f, 3.3541968854494675e-06f};

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), with an error of at most 3e-7.
inline Vec gelu(Vec x) {
  const Vec size = min(all(14.0f), abs(x));  // the eighth power stays finite, and NaN NaN
  const Vec root = polynomial(eighth_root, size), square = root * root, fourth = square * square;
  return max(x, all(0.0f)) - size * reciprocal(fourth * fourth);
}

// 2^x on [-0.5, 0.5], and exp(a^2/2) times the normal distribution's upper tail, as a polynomial in t = 1/(1 + p a),
// a >= 0. Both are best in the relative error: 7e-4, a third of half a unit in the last place of bfloat16.
struct Rough {
  static constexpr float power_of_2[] = {0.9999280441610983f, 0.6932610334359981f, 0.2426116363602045f,
                                         0.05517161484108248f};
  static constexpr float p = 0.36f;
  static constexpr float tail[] = {-0.0011597667179404389f, 0.15982840106129287f, 0.06572417160876808f,
                                   0.2759075485527577f};
};

// GELU as exact as bfloat16, however small the result is.
inline Vec rough_gelu(Vec x) {
  const Vec size = abs(x);
  const Vec power = max(x * x * all(-0.72134752f), all(-1000.0f));  // -x^2 / 2 / ln 2; squares may be infinite
  const Vec whole = nearest(power);
  const Vec fraction = polynomial(Rough::power_of_2, power - whole);
  const Vec t = rough_reciprocal(multiply_add(all(Rough::p), size, all(1.0f)));
  const Vec tail = times_power_of_2(fraction * polynomial(Rough::tail, t), whole);
  return max(x, all(0.0f)) - size * tail;
}

// As `Rough`, to 2e-6.
struct Exact {
  static constexpr float power_of_2[] = {1.000000071682656f,   0.6931469670112522f,   0.24022119581986207f,
                                         0.05550713286759223f, 0.009675549138522347f, 0.001327649202597638f};
  static constexpr float p = 0.3f;
  static constexpr float tail[] = {-7.97496382138651e-05f, 0.1212741919180049f,   0.10670713035384473f,
                                   0.16475769439057508f,   -0.04863487383090894f, 0.2405659000273549f,
                                   -0.08459123208344367f};
};

// Phi(x) + x phi(x), by the symmetry of 1/2: the part below that of -|x|.
inline Vec gelu_slope(Vec x) {
  const Vec size = min(all(1e18f), abs(x));  // NaN stays
  const Vec power = max(size * size * all(-0.72134752f), all(-1000.0f));
  const Vec whole = nearest(power);
  const Vec fraction = polynomial(Exact::power_of_2, power - whole);
  const Vec t = reciprocal(multiply_add(all(Exact::p), size, all(1.0f)));
  const Vec density = size * all(0.39894228f);
  const Vec below = times_power_of_2(fraction * (polynomial(Exact::tail, t) - density), whole);
  return all(0.5f) + with_sign(all(0.5f) - below, x);
}

}  // namespace
