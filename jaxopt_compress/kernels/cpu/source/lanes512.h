// Sixteen columns in a register of AVX-512.
//
// Included inside the unnamed namespace of a path.

struct V {
  using I = __m512i;
  using F = __m512;
  using Numbers = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kMost = 14;
  static constexpr bool kExpands = true, kRounds = true;
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
  // Two lines, into the second-level cache: it has room for more that are on their way.
  static void prefetch(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
    _mm_prefetch(static_cast<const char*>(p) + 64, _MM_HINT_T1);
  }

  static F all(float x) { return _mm512_set1_ps(x); }
  static F get(const float* p) { return _mm512_loadu_ps(p); }
  // The first n columns of a register, or all; zeros for the rest.
  static F get(const float* p, int n) {
    return n < 16 ? _mm512_maskz_loadu_ps((1 << n) - 1, p) : get(p);
  }
  static void put(float* p, F x) { _mm512_storeu_ps(p, x); }
  // The first n columns of a register, or all. What is stored by a mask comes to a later
  // load by way of the cache.
  static void put(float* p, F x, int n) {
    if (n >= 16) return put(p, x);
    _mm512_mask_storeu_ps(p, (1 << n) - 1, x);
  }
  static F floats(I x) { return _mm512_cvtepi32_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F at_least(F floor, F y) { return _mm512_max_ps(floor, y); }
  static F at_most(F top, F y) { return _mm512_min_ps(top, y); }
  // p 2^(whole - 1), from -126, where that is 0. (What
  // underflows takes a hundred cycles, and vscalefps, too.)
  static F scaled(F p, F whole) {
    const I power = _mm512_add_epi32(_mm512_cvtps_epi32(whole), integers(126));
    return mul(p, _mm512_castsi512_ps(_mm512_slli_epi32(power, 23)));
  }
  static F where_negative(F x, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), b, a);
  }
  // a / b to 2^-22: a division takes as long as sixteen multiplications.
  static F quotient(F a, F b) {
    F r = _mm512_rcp14_ps(b);
    r = _mm512_mul_ps(r, _mm512_fnmadd_ps(b, r, _mm512_set1_ps(2.0f)));
    return _mm512_mul_ps(a, r);
  }
  static float lowest(F x) { return _mm512_reduce_min_ps(x); }
  static float highest(F x) { return _mm512_reduce_max_ps(x); }
  static bool has_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }

  static F nearest(F x) { return _mm512_roundscale_ps(x, 0); }
  // 2^-n of a whole number n from -127 to 126; 0 of 127.
  static F halved(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_cvtps_epi32(n)), 23));
  }
  static float total(F x) { return _mm512_reduce_add_ps(x); }
  static F from_halves(const char* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
        16));
  }
  static F from_bytes(const char* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // The totals of four registers.
  static void totals(F a, F b, F c, F d, float* out) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const F all = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                      _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half),
                                  _mm256_extractf128_ps(half, 1)));
  }
  static constexpr bool kTurns = true;
  // out[i * pitch + r] = factor rows[r][i], i < n <= 16; of 16 rows, 0 past `count`.
  static void turn(const float* const* rows, int count, int n, float factor, float* out,
                   int64_t pitch) {
    const __mmask16 some = static_cast<__mmask16>(n < 16 ? (1 << n) - 1 : 0xffff);
    const F by = _mm512_set1_ps(factor);
    F a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      a[r] = r < count ? _mm512_mul_ps(_mm512_maskz_loadu_ps(some, rows[r]), by)
                       : _mm512_setzero_ps();
    }
    // Pairs of rows, then pairs of pairs: each quarter of a register is a small square.
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
      b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
    }
    const auto low = [](F x, F y) {
      return _mm512_castpd_ps(
          _mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    const auto high = [](F x, F y) {
      return _mm512_castpd_ps(
          _mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
      a[r] = low(b[r], b[r + 2]);
      a[r + 1] = high(b[r], b[r + 2]);
      a[r + 2] = low(b[r + 1], b[r + 3]);
      a[r + 3] = high(b[r + 1], b[r + 3]);
    }
    // Then the quarters of registers that are four apart.
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      b[r] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0x88);
      b[r + 4] = _mm512_shuffle_f32x4(a[r], a[r + 4], 0xdd);
      b[r + 8] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0x88);
      b[r + 12] = _mm512_shuffle_f32x4(a[r + 8], a[r + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const F columns[4] = {_mm512_shuffle_f32x4(b[r], b[r + 8], 0x88),
                            _mm512_shuffle_f32x4(b[r + 4], b[r + 12], 0x88),
                            _mm512_shuffle_f32x4(b[r], b[r + 8], 0xdd),
                            _mm512_shuffle_f32x4(b[r + 4], b[r + 12], 0xdd)};
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        if (r + 4 * q < n) _mm512_storeu_ps(out + (r + 4 * q) * pitch, columns[q]);
      }
    }
  }

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

  // What becomes of the numbers of a row.
  struct Grid {
    F inverse, least, most;
    I zero, low, high;

    Grid(float inverse, float zero, float low, float high)
        : inverse(_mm512_set1_ps(inverse)),
          least(_mm512_set1_ps(low - zero)),
          most(_mm512_set1_ps(high - zero)),
          zero(_mm512_set1_epi16(static_cast<int16_t>(zero))),
          low(_mm512_set1_epi8(static_cast<int8_t>(low))),
          high(_mm512_set1_epi8(static_cast<int8_t>(high))) {}
  };
  // Codes of 64 numbers: `round_some` of rows.h.
  template <bool kOwn>
  static I codes(const float* x, const Grid& grid) {
    I q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      F v = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), grid.inverse);
      if constexpr (!kOwn) {
        v = _mm512_min_ps(_mm512_max_ps(v, grid.least), grid.most);
      }
      q[i] = _mm512_cvtps_epi32(v);
    }
    // Packing saturates, and what it leaves is apart by lanes of 128 bits.
    const I a = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), grid.zero);
    const I b = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), grid.zero);
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11,
                                      15);
    const I codes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
    return _mm512_min_epi8(_mm512_max_epi8(codes, grid.low), grid.high);
  }
  // Sixteen four-byte entries of up to sixteen rows, from place `at` of each: entry by
  // entry, `step` bytes from one to the next.
  static void interleave(const int8_t* const* rows, int64_t count, int64_t at,
                         int8_t* out, int64_t step) {
    I a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      a[r] = r < count ? _mm512_loadu_si512(rows[r] + at) : _mm512_setzero_si512();
    }
    // Twice pairs of rows, then twice lanes of 128 bits: 16 by 16, transposed.
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2) {
      b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
      a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < 16; r += 8) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        b[r + i] = _mm512_shuffle_i32x4(a[r + i], a[r + 4 + i], 0x88);
        b[r + 4 + i] = _mm512_shuffle_i32x4(a[r + i], a[r + 4 + i], 0xdd);
      }
    }
    const __mmask16 used = static_cast<__mmask16>((1u << count) - 1);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      // b[i] has entries i % 4 + 4 (i / 4) and eight more of eight rows.
      const I first = _mm512_shuffle_i32x4(b[i], b[8 + i], 0x88);
      const I second = _mm512_shuffle_i32x4(b[i], b[8 + i], 0xdd);
      _mm512_mask_storeu_epi32(out + i * step, used, first);
      _mm512_mask_storeu_epi32(out + (8 + i) * step, used, second);
    }
  }

  static Numbers numbers(const float* p) { return _mm512_loadu_ps(p); }
  // The number whose code is in bits shift to shift + 3 of each lane.
  static F number(Numbers numbers, I raw, int shift) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(raw, shift), numbers);
  }
};
