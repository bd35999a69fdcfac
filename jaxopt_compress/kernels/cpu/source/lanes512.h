// Sixteen columns in a register of AVX-512.
//
// Included inside the unnamed namespace of a path.

struct V {
  using I = __m512i;
  using F = __m512;
  using Numbers = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMost = 14;

  static I none() { return _mm512_setzero_si512(); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void save(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I integers(int32_t x) { return _mm512_set1_epi32(x); }
  static I less(I x, int32_t y) {
    return _mm512_sub_epi32(x, _mm512_set1_epi32(y));
  }
  static I four(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  static I dot(I acc, I u, I s) { return _mm512_dpbusd_epi32(acc, u, s); }
  static I field(I x, int shift, int mask) {
    return _mm512_and_si512(_mm512_srli_epi16(x, shift),
                            _mm512_set1_epi8(static_cast<char>(mask)));
  }
  // Adds a third bit.
  static I join(I low, I high) {
    return _mm512_or_si512(low, _mm512_slli_epi16(high, 2));
  }
  static I table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I look_up(I table, I code) { return _mm512_shuffle_epi8(table, code); }
  static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
    _mm_prefetch(static_cast<const char*>(p) + 64, _MM_HINT_T0);
  }

  static F all(float x) { return _mm512_set1_ps(x); }
  static F get(const float* p) { return _mm512_loadu_ps(p); }
  static void put(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F floats(I x) { return _mm512_cvtepi32_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }

  static Numbers numbers(const float* p) { return _mm512_loadu_ps(p); }
  // The number whose code is in bits shift to shift + 3 of each lane.
  static F number(Numbers numbers, I raw, int shift) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, shift), numbers);
  }
};
