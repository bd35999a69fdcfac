// Curves that results of a product may go through, a register of them at a time.
//
// A curve is a function bend_NAME here, with its name in JAXOPT_COMPRESS_CURVES of job.h
// and a row in CURVES of kernels/curves.py, which recognises it in programs. Where a
// curve is NaN of an infinity by its formula (0 times infinity), it is here.
//
// Included inside the unnamed namespace of a path, after `V`.

inline typename V::F magnitude(typename V::F x) {
  return V::at_least(V::sub(V::all(0.0f), x), x);
}

// c0 + c1 x + c2 x^2 + ...
template <int kCount>
inline typename V::F polynomial(const float (&c)[kCount], typename V::F x) {
  typename V::F y = V::all(c[kCount - 1]);
#pragma GCC unroll 16
  for (int i = kCount - 2; i >= 0; --i) y = V::fma(y, x, V::all(c[i]));
  return y;
}

constexpr float kLog2e = 1.44269504f;

// (2^f - 1) / f, of f from -1/2 to 1/2: the series of 2^f.
constexpr float kGrowth[] = {6.9314718e-1f, 2.4022651e-1f, 5.5504109e-2f, 9.6181291e-3f,
                             1.3333558e-3f, 1.5403530e-4f, 1.5252734e-5f};

// 2^t, of t up to 126, to 2^-22 or so; 0 where t is less than -125.5, as numbers that
// floats hardly hold cost a hundred cycles.
inline typename V::F power_of_two(typename V::F t) {
  t = V::at_least(V::all(-126.0f), t);
  const typename V::F whole = V::nearest(t), f = V::sub(t, whole);
  const typename V::F twice =
      V::fma(polynomial(kGrowth, f), V::add(f, f), V::all(2.0f));
  return V::scaled(twice, whole);
}

// e^-|x|.
inline typename V::F e_to_minus(typename V::F x) {
  return power_of_two(V::mul(magnitude(x), V::all(-kLog2e)));
}

// e^-|x| - 1. Of small x there is no 1 to cancel: 2^t - 1 is f (2^f - 1) / f there.
inline typename V::F e_to_minus_less_one(typename V::F x) {
  const typename V::F t = V::at_least(V::all(-126.0f),
                                      V::mul(magnitude(x), V::all(-kLog2e)));
  const typename V::F whole = V::nearest(t), f = V::sub(t, whole), one = V::all(1.0f);
  const typename V::F power = V::scaled(V::all(2.0f), whole);
  return V::fma(power, V::mul(polynomial(kGrowth, f), f), V::sub(power, one));
}

// 1 / (1 + e^-x) = (e^x or 1) / (1 + e^-|x|).
inline typename V::F bend_sigmoid(typename V::F x) {
  const typename V::F s = e_to_minus(x), one = V::all(1.0f);
  return V::quotient(V::where_negative(x, s, one), V::add(one, s));
}

// x sigmoid(x).
inline typename V::F bend_silu(typename V::F x) { return V::mul(x, bend_sigmoid(x)); }

// x Phi(x) by its tanh formula (Hendrycks and Gimpel 2016,
// https://arxiv.org/abs/1606.08415), as tanh is 2 sigmoid(2 .) - 1.
inline typename V::F bend_gelu(typename V::F x) {
  const typename V::F slope =
      V::fma(V::mul(x, x), V::all(0.0713548163f), V::all(1.59576912f));
  return V::mul(x, bend_sigmoid(V::mul(x, slope)));
}

// x Phi(x). With t = |x| and y = 1 / (1 + 0.3 t), Phi(-t) = e^(-t^2 / 2) y p(y): p is a
// minimax fit to e^(t^2 / 2) Phi(-t) / y for all t, off by 5e-7 of that at most.
inline typename V::F bend_exact_gelu(typename V::F x) {
  constexpr float kTail[] = {0.119682632f,  0.119691089f,   0.108700231f,
                             0.0892836973f, 0.0502581187f,  0.0391143821f,
                             0.00319639826f, -0.0485241786f, 0.0185978562f};
  const typename V::F t = V::at_most(V::all(1e15f), magnitude(x)), one = V::all(1.0f);
  const typename V::F y = V::quotient(one, V::fma(t, V::all(0.3f), one));
  const typename V::F e =
      power_of_two(V::mul(V::mul(x, x), V::all(-0.5f * kLog2e)));
  const typename V::F tail = V::mul(e, V::mul(y, polynomial(kTail, y)));
  return V::mul(x, V::where_negative(x, tail, V::sub(one, tail)));
}

// tanh |x| = -m / (2 + m) with m = e^(-2 |x|) - 1, and the sign of x.
inline typename V::F bend_tanh(typename V::F x) {
  const typename V::F m = e_to_minus_less_one(V::add(x, x));
  const typename V::F y = V::quotient(m, V::add(V::all(2.0f), m));
  return V::where_negative(x, y, V::sub(V::all(0.0f), y));
}

// min(max(x, 0), 6).
inline typename V::F bend_relu6(typename V::F x) {
  return V::at_most(V::all(6.0f), V::at_least(V::all(0.0f), x));
}

// relu6(x + 3) / 6.
inline typename V::F bend_hard_sigmoid(typename V::F x) {
  return V::mul(bend_relu6(V::add(x, V::all(3.0f))), V::all(1.0f / 6.0f));
}

// x relu6(x + 3) / 6.
inline typename V::F bend_hard_swish(typename V::F x) {
  return V::mul(x, bend_hard_sigmoid(x));
}

// max(x, 0.01 x).
inline typename V::F bend_leaky_relu(typename V::F x) {
  return V::at_least(V::mul(x, V::all(0.01f)), x);
}

// max(x, 0)^2.
inline typename V::F bend_squared_relu(typename V::F x) {
  const typename V::F y = V::at_least(V::all(0.0f), x);
  return V::mul(y, y);
}

// x, or e^x - 1 if it is negative.
inline typename V::F bend_elu(typename V::F x) {
  return V::where_negative(x, e_to_minus_less_one(x), x);
}

// log(1 + e^x) = max(x, 0) + log(1 + s) with s = e^-|x|, and log(1 + s) =
// 2 atanh(u) of u = s / (2 + s): a minimax fit to atanh(u) / u in u^2, to 4e-9.
inline typename V::F bend_softplus(typename V::F x) {
  constexpr float kAtanh[] = {1.0f, 0.33333158f, 0.20012449f, 0.13980336f, 0.14089182f};
  const typename V::F s = e_to_minus(x);
  const typename V::F u = V::quotient(s, V::add(V::all(2.0f), s));
  const typename V::F half = V::mul(u, polynomial(kAtanh, V::mul(u, u)));
  return V::fma(V::all(2.0f), half, V::at_least(V::all(0.0f), x));
}

// x tanh(softplus(x)) = x a / (a + b) with s = e^-|x|: a = s (s + 2) and b = 2 for
// negative x, a = 1 + 2 s and b = 2 s^2 for others.
inline typename V::F bend_mish(typename V::F x) {
  const typename V::F s = e_to_minus(x), two = V::all(2.0f), square = V::mul(s, s);
  const typename V::F a = V::where_negative(x, V::fma(s, two, square),
                                            V::fma(s, two, V::all(1.0f)));
  const typename V::F b = V::where_negative(x, two, V::add(square, square));
  return V::mul(x, V::quotient(a, V::add(a, b)));
}
