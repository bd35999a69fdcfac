// Sixteen columns in a register of AVX-512.
//
// Included inside the unnamed namespace of a path.

struct V {
  using I = __m512i;
  using F = __m512;
  using Numbers = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMost = 14;
  static constexpr bool kExpands = true;
#if defined(__AVX512VBMI2__)
  static constexpr bool kExpandsNarrow = true;
#else
  static constexpr bool kExpandsNarrow = false;
#endif

  static I none() { return _mm512_setzero_si512(); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void save(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I integers(int32_t x) { return _mm512_set1_epi32(x); }
  static I sum(I x, I y) { return _mm512_add_epi32(x, y); }
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
  // Codes of three bits from their two low bits and their high bit.
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
  // The first n columns of a register, or all.
  static void put(float* p, F x, int n) {
    _mm512_mask_storeu_ps(p, n < 16 ? (1 << n) - 1 : 0xffff, x);
  }
  static F floats(I x) { return _mm512_cvtepi32_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F at_least(F floor, F y) { return _mm512_max_ps(floor, y); }

  static I bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  // Consecutive values, moved to the lanes whose bits are set.
  static F expand_floats(uint16_t bits, const uint8_t* p) {
    return _mm512_maskz_expandloadu_ps(bits, p);
  }
#if defined(__AVX512VBMI2__)
  static I expand_codes(uint64_t bits, const uint8_t* p) {
    return _mm512_mask_expandloadu_epi8(_mm512_set1_epi8(-128), bits, p);
  }
  static I expand_words(uint32_t bits, const uint8_t* p) {
    return _mm512_maskz_expandloadu_epi16(bits, p);
  }
#endif
  // Two bfloat16 of a lane, as floats.
  static F low_half(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static F high_half(I x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
  }

  static Numbers numbers(const float* p) { return _mm512_loadu_ps(p); }
  // The number whose code is in bits shift to shift + 3 of each lane.
  static F number(Numbers numbers, I raw, int shift) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, shift), numbers);
  }
};
