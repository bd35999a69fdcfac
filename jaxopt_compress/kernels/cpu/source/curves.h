// Curves that results of a product may go through: plain loops over n of them, in place,
// which each instruction path compiles for itself.
//
// A curve is a function here with its row in kCurves, and a row in CURVES of
// kernels/epilogues.py, which recognises it in programs.
//
// Included inside the unnamed namespace of a path, or of a handler for the names.

constexpr float kLog2e = 1.44269504f;

// (2^f - 1) / f, of f from -1/2 to 1/2: the series of 2^f.
inline float growth(float f) {
  float p = 1.5252734e-5f;
  p = p * f + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  return p;
}

// 2^n of a whole number n from -126 to 126.
inline float power_of_whole(float n) {
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return power;
}

// 2^t, of t from -126 to 126, to 2^-22 or so.
inline float power_of_two(float t) {
  const float whole = __builtin_nearbyintf(t), f = t - whole;
  const float p = growth(f) * f + 1.0f;
  return p * power_of_whole(whole);
}

// x sigmoid(x (a + b x^2)) of each.
inline void sigmoid_times(float a, float b, int n, float* y) {
  a *= -kLog2e;
  b *= -kLog2e;
  for (int i = 0; i < n; ++i) {
    const float x = y[i];
    const float square = x * x;  // of infinity, not more than b can be times
    float t = x * (a + b * (square < 1e30f ? square : 1e30f));
    t = t > -126.0f ? t : -126.0f;
    const float bent = x / (1.0f + power_of_two(t < 126.0f ? t : 126.0f));
    // What is not finite stays so: of minus infinity, NaN.
    y[i] = t < 126.0f ? bent : 0.0f * x;
  }
}

// x Phi(x) by its tanh formula (Hendrycks and Gimpel 2016,
// https://arxiv.org/abs/1606.08415), as tanh is 2 sigmoid(2 .) - 1.
inline void bend_gelu(int n, float* y) {
  sigmoid_times(1.59576912f, 0.0713548163f, n, y);
}

// x sigmoid(x).
inline void bend_silu(int n, float* y) { sigmoid_times(1.0f, 0.0f, n, y); }

// 1 / (1 + e^-x).
inline void bend_sigmoid(int n, float* y) {
  for (int i = 0; i < n; ++i) {
    const float x = y[i];
    float t = x * -kLog2e;
    t = t > -126.0f ? t : -126.0f;
    const float bent = 1.0f / (1.0f + power_of_two(t < 126.0f ? t : 126.0f));
    y[i] = x != x ? x : t < 126.0f ? bent : 0.0f;
  }
}

// tanh |x| = -m / (2 + m) with m = e^(-2 |x|) - 1, and the sign of x. Of small x, m has
// no 1 to cancel: 2^t - 1 is f growth(f) there.
inline void bend_tanh(int n, float* y) {
  for (int i = 0; i < n; ++i) {
    const float x = y[i];
    float t = __builtin_fabsf(x) * (-2.0f * kLog2e);
    t = t > -126.0f ? t : -126.0f;
    const float whole = __builtin_nearbyintf(t), f = t - whole;
    const float power = power_of_whole(whole);
    const float m = power * (growth(f) * f) + (power - 1.0f);
    y[i] = x != x ? x : __builtin_copysignf(m / (2.0f + m), x);
  }
}

struct Curve {
  const char* name;
  void (*bend)(int n, float* y);
};

constexpr Curve kCurves[] = {
    {"gelu", bend_gelu},
    {"silu", bend_silu},
    {"sigmoid", bend_sigmoid},
    {"tanh", bend_tanh},
};
