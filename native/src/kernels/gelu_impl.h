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

#if defined(LOOKS_UP_32)
// Phi(-a) as a polynomial in a, around each multiple of 1 / 5.6.
struct Tails {
  static constexpr float tail0[32] = {
      0.5f,          0.5000067f,     0.5002105f,     0.5014652f,    0.50540733f,  0.5138402f,   0.5276111f,
      0.54554874f,   0.56405306f,    0.5776416f,     0.5803192f,    0.56726706f,  0.53624f,     0.4881735f,
      0.42688695f,   0.3580584f,     0.2878818f,     0.221835f,     0.1638602f,   0.11606373f,  0.07886693f,
      0.051438116f,  0.032217313f,   0.019387746f,   0.011215297f,  0.006239369f, 0.003339688f, 0.001720612f,
      0.0008535636f, 0.00040786542f, 0.00018778765f, 8.3332954e-05f};
  static constexpr float tail1[32] = {
      -0.3989427f,     -0.3990976f,     -0.40121976f,    -0.40943688f,   -0.42814878f,  -0.4594798f,    -0.5014878f,
      -0.5479008f,     -0.5894927f,     -0.6165489f,     -0.62149835f,   -0.60080624f,  -0.55562264f,   -0.49110422f,
      -0.41486198f,    -0.33509552f,    -0.25898308f,    -0.19167125f,   -0.13594975f,  -0.09248641f,   -0.060391802f,
      -0.037877142f,   -0.02283229f,    -0.013235627f,   -0.0073822616f, -0.003963605f, -0.0020494366f, -0.0010209201f,
      -0.00049013615f, -0.00022685596f, -0.00010125593f, -4.3595817e-05f};
  static constexpr float tail2[32] = {
      1.9204805e-05f, 0.0012236078f,  0.008683586f,   0.02672913f,   0.056431364f,  0.09531157f,    0.13808498f,
      0.17815469f,    0.20933902f,    0.22730573f,    0.23035103f,   0.21941325f,   0.19747351f,    0.16859882f,
      0.13697581f,    0.10615554f,    0.078633994f,   0.055763494f,  0.037909158f,  0.024733229f,   0.015501472f,
      0.009340563f,   0.005414824f,   0.003021828f,   0.0016242708f, 0.0008413016f, 0.00042007517f, 0.0002022748f,
      9.395854e-05f,  4.2114916e-05f, 1.8220215e-05f, 7.6101037e-06f};
  static constexpr float tail3[32] = {
      0.066246994f,    0.06303367f,    0.054160304f,    0.040867694f,    0.025099704f,    0.008984267f,
      -0.005553126f,   -0.017095456f,  -0.024894737f,   -0.0288737f,     -0.029497469f,   -0.02756968f,
      -0.024017522f,   -0.019708842f,  -0.015335754f,   -0.011365514f,   -0.008047765f,   -0.00545714f,
      -0.003549916f,   -0.0022183268f, -0.001333085f,   -0.00077107357f, -0.00042958854f, -0.00023066913f,
      -0.00011943352f, -5.965548e-05f, -2.8755629e-05f, -1.3380838e-05f, -6.0124776e-06f, -2.6093971e-06f,
      -1.0940519e-06f, -4.432314e-07f};
};

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), with an error of at most 5e-7.
inline Vec gelu_of(Vec x, Vec size, Vec place) {
  Vec tail = multiply_add(look_up(Tails::tail3, place), size, look_up(Tails::tail2, place));
  tail = multiply_add(tail, size, look_up(Tails::tail1, place));
  return minus_product(max(all(0.0f), x), size, multiply_add(tail, size, look_up(Tails::tail0, place)));
}
inline Vec gelu(Vec x) {
  const Vec size = smaller_size(x, all(5.625f));
  return gelu_of(x, size, nearest_place(size, 5.6f));
}
#else
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
#endif

#if defined(LOOKS_UP_32)
// log2(Phi(-a)) as a polynomial in a, around each multiple of a half, to 1.5e-4; and 2^x on [0, 1], to 8e-5.
struct Looked {
  static constexpr float power_of_2[] = {0.9999253f, 0.69583285f, 0.226068f, 0.07802445f};
  static constexpr float logarithm0[32] = {
      -1.0000238f, -1.0042561f, -1.0317693f, -1.0867811f, -1.1638994f, -1.25565f,   -1.3555858f, -1.4590069f,
      -1.5627792f, -1.664938f,  -1.7643229f, -1.8603032f, -1.9525862f, -2.0410905f, -2.1258628f, -2.2070246f,
      -2.284738f,  -2.359185f,  -2.430554f,  -2.4990315f, -2.5647974f, -2.628023f,  -2.6888688f, -2.7474847f,
      -2.8040097f, -2.8585732f, -2.9112942f, -2.9622824f, -3.01164f,   -3.0594606f, -3.105831f,  -3.150831f};
  static constexpr float logarithm1[32] = {
      -1.1493624f,  -1.1208656f,  -1.0469112f,  -0.95824087f, -0.8695877f,  -0.78765213f, -0.71470064f, -0.6508639f,
      -0.5953802f,  -0.5472049f,  -0.5052846f,  -0.46866545f, -0.43652514f, -0.40817156f, -0.38302884f, -0.3606197f,
      -0.34054893f, -0.32248852f, -0.30616534f, -0.291351f,   -0.27785355f, -0.26551107f, -0.25418603f, -0.24376132f,
      -0.2341365f,  -0.2252252f,  -0.21695267f, -0.20925407f, -0.20207286f, -0.19535951f, -0.18907052f, -0.18316756f};
  static constexpr float logarithm2[32] = {
      -0.47810125f, -0.52719647f, -0.57735693f, -0.61320597f, -0.6387272f,  -0.6570384f,  -0.6703608f,  -0.68021643f,
      -0.6876355f,  -0.69331664f, -0.6977381f,  -0.7012316f,  -0.70403045f, -0.7063016f,  -0.7081661f,  -0.7097131f,
      -0.7110091f,  -0.7121045f,  -0.7130379f,  -0.71383923f, -0.7145318f,  -0.71513414f, -0.71566117f, -0.7161247f,
      -0.71653444f, -0.71689826f, -0.7172228f,  -0.7175134f,  -0.7177746f,  -0.71801025f, -0.7182235f,  -0.71841705f};
};

// GELU as exact as bfloat16, however small the result is.
inline Vec rough_gelu(Vec x) {
  const Vec size = smaller_size(x, all(15.7f));  // the last place is 31
  const Vec place = nearest_place(size, 2.0f);
  const Vec slope = multiply_add(look_up(Looked::logarithm2, place), size, look_up(Looked::logarithm1, place));
  const Vec power = multiply_add(slope, size, look_up(Looked::logarithm0, place));
  const Vec tail = times_power_of_2(polynomial(Looked::power_of_2, fraction(power)), power);
  return minus_product(max(all(0.0f), x), size, tail);
}
#else
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
  const Vec size = min(all(1e18f), abs(x));                               // times zero it is zero, and NaN stays
  const Vec power = max(size * size * all(-0.72134752f), all(-1000.0f));  // -x^2 / 2 / ln 2
  const Vec whole = nearest(power);
  const Vec fraction = polynomial(Rough::power_of_2, power - whole);
  const Vec t = rough_reciprocal(multiply_add(all(Rough::p), size, all(1.0f)));
  const Vec tail = times_power_of_2(fraction * polynomial(Rough::tail, t), whole);
  return max(x, all(0.0f)) - size * tail;
}
#endif

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

#if defined(LOOKS_UP_32)
// Phi(-a) - a phi(a) as a polynomial in a, around each multiple of 1 / 5.6.
struct Slopes {
  static constexpr float slope0[32] = {
      0.5f,         0.500033f,     0.50118226f,    0.5081395f,    0.5287857f,   0.5688502f,    0.6245155f,
      0.67799526f,  0.7000257f,    0.6591356f,     0.5347001f,    0.32645318f,  0.057311907f,  -0.2325349f,
      -0.4973355f,  -0.6984968f,   -0.8137158f,    -0.84003156f,  -0.7909078f,  -0.6897981f,   -0.56261194f,
      -0.43187112f, -0.3134242f,   -0.21578507f,   -0.14130788f,  -0.08820259f, -0.052566845f, -0.029955575f,
      -0.01634185f, -0.008543366f, -0.0042839716f, -0.0020620057f};
  static constexpr float slope1[32] = {
      -0.79788667f, -0.79868895f, -0.8108049f,  -0.8566505f,  -0.95506835f, -1.1044824f,   -1.2749954f,   -1.4142458f,
      -1.4648993f,  -1.3853412f,  -1.1662314f,  -0.8334994f,  -0.44028744f, -0.050312653f, 0.27985746f,   0.5136143f,
      0.6390975f,   0.6663327f,   0.61943805f,  0.5277318f,   0.4181594f,   0.31095615f,   0.21831745f,   0.14532852f,
      0.09201331f,  0.05554381f,  0.032028336f, 0.017669203f, 0.009337616f, 0.0047321054f, 0.0023017873f, 0.001075488f};
  static constexpr float slope2[32] = {
      0.00010360315f, 0.0066042393f,   0.04979674f,    0.1511249f,    0.30802763f,   0.49414572f,    0.6684879f,
      0.78946084f,    0.8282865f,      0.77667314f,    0.64801216f,   0.47073594f,   0.27918357f,    0.10423994f,
      -0.03301659f,   -0.12357854f,    -0.16913953f,   -0.17853425f,  -0.16361055f,  -0.13588148f,   -0.1044121f,
      -0.075108156f,  -0.050954733f,   -0.032765936f,  -0.02004292f,  -0.011694005f, -0.0065211826f, -0.0034814514f,
      -0.0017817203f, -0.00087505823f, -0.0004128081f, -0.0001872011f};
  static constexpr float slope3[32] = {
      0.26459286f,    0.2465743f,    0.19440788f,    0.119274214f,  0.035612974f,  -0.041824393f,  -0.101323895f,
      -0.13638753f,   -0.14630833f,  -0.13514335f,   -0.10994912f,  -0.07845374f,  -0.047339253f,  -0.021172311f,
      -0.0021482063f, 0.009549167f,  0.015064167f,   0.016144296f,  0.014561039f,  0.011765913f,   0.008752898f,
      0.006082564f,   0.003983226f,  0.0024722246f,  0.0014600864f, 0.0008229411f, 0.00044361997f, 0.00022911084f,
      0.00011351705f, 5.401758e-05f, 2.4709363e-05f, 1.0873515e-05f};
};

// The distance of Phi(x) + x phi(x) from 1/2 is the same at x and -x.
inline Vec slope_of(Vec x, Vec size, Vec place) {
  Vec below = multiply_add(look_up(Slopes::slope3, place), size, look_up(Slopes::slope2, place));
  below = multiply_add(below, size, look_up(Slopes::slope1, place));
  below = multiply_add(below, size, look_up(Slopes::slope0, place));
  return all(0.5f) + with_sign(all(0.5f) - below, x);
}

// Phi(x) + x phi(x), with an error of at most 2e-6, for bfloat16.
inline Vec rough_gelu_slope(Vec x) {
  const Vec size = min(all(5.625f), abs(x));  // NaN stays
  return slope_of(x, size, nearest_place(size, 5.6f));
}

// GELU and its slope, both with errors of at most 2e-6.
inline Vec gelu_with_slope(Vec x, Vec& slope) {
  const Vec size = min(all(5.625f), abs(x)), place = nearest_place(size, 5.6f);
  slope = slope_of(x, size, place);
  return gelu_of(x, size, place);
}
#else
inline Vec rough_gelu_slope(Vec x) { return gelu_slope(x); }

inline Vec gelu_with_slope(Vec x, Vec& slope) {
  slope = gelu_slope(x);
  return rough_gelu(x);
}
#endif

}  // namespace
