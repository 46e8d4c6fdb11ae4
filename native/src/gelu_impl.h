// GELU, on top of the sixteen-lane `Vec` of an instruction set.

#pragma once

namespace {

// 2^x by `terms` coefficients behind the leading one on [-0.5, 0.5], and exp(a^2/2) times the normal distribution's
// upper tail, as a polynomial in t = 1/(1 + p a), a >= 0. Both are best in the relative error, see fit_gelu.py.
struct Exact {  // 2e-6
  static constexpr float power_of_2[] = {1.000000071682656f,   0.6931469670112522f,   0.24022119581986207f,
                                         0.05550713286759223f, 0.009675549138522347f, 0.001327649202597638f};
  static constexpr float p = 0.3f;
  static constexpr float tail[] = {-7.97496382138651e-05f, 0.1212741919180049f,   0.10670713035384473f,
                                   0.16475769439057508f,   -0.04863487383090894f, 0.2405659000273549f,
                                   -0.08459123208344367f};
  static Vec inverse(Vec x) { return reciprocal(x); }
};
struct Rough {  // 7e-4: a third of half a unit in the last place of bfloat16
  static constexpr float power_of_2[] = {0.9999280441610983f, 0.6932610334359981f, 0.2426116363602045f,
                                         0.05517161484108248f};
  static constexpr float p = 0.36f;
  static constexpr float tail[] = {-0.0011597667179404389f, 0.15982840106129287f, 0.06572417160876806f,
                                   0.2759075485527577f};
  static Vec inverse(Vec x) { return rough_reciprocal(x); }
};

template <int count>
inline Vec polynomial(const float (&coefficients)[count], Vec x) {
  Vec result = all(coefficients[count - 1]);
#pragma GCC unroll 8
  for (int i = count - 2; i >= 0; --i) result = multiply_add(result, x, all(coefficients[i]));
  return result;
}

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|): no cancellation where the result is small.
template <class Precision>
inline Vec gelu(Vec x) {
  const Vec size = abs(x);
  const Vec power = max(x * x * all(-0.72134752f), all(-1000.0f));  // -x^2 / 2 / ln 2; squares may be infinite
  const Vec whole = nearest(power);
  const Vec fraction = polynomial(Precision::power_of_2, power - whole);
  const Vec t = Precision::inverse(multiply_add(all(Precision::p), size, all(1.0f)));
  const Vec tail = times_power_of_2(fraction * polynomial(Precision::tail, t), whole);
  return max(x, all(0.0f)) - size * tail;
}

}  // namespace
