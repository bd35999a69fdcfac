// Codes of weights and how they lie in memory.
//
// A matrix of K x N codes is cut into panels of 32 columns; a panel is a run of
// units along K. With c(k, n) the unsigned code at row k of the unit, column n of
// the panel, k = 4 j + i and n = 16 h + l, a unit is
//
//   8 bits   4 rows, 128 bytes    byte[h][l][i] = c(i, n)
//   4 bits   8 rows, 128 bytes    byte[h][l][i] = sum_j c(4 j + i, n) << 4 j
//   2 bits  16 rows, 128 bytes    byte[h][l][i] = sum_j c(4 j + i, n) << 2 j
//   3 bits  16 rows, 192 bytes    the two low bits as above, then 64 bytes
//                                 byte[l][i] = sum_{h,j} high bit << (4 h + j)
//
// so that four rows of sixteen columns fill a 64-byte register in the order that
// four-way byte products want. A number is its code less an offset, or an entry of
// a table. Rows and columns past the end hold the code 0.
#pragma once

#include <cstdint>
#include <cstring>

namespace jaxopt_compress {

constexpr int kColumns = 32;  // of a panel
constexpr int kSteps = 4;     // rows that are multiplied at once

struct Format {
  const char* name;
  int bits;
  int rows;   // of a unit
  int bytes;  // of a unit
  int offset;
  float unit;              // what the integer 1 stands for
  const uint8_t* table;    // integer + offset of each code, or null
  const float* numbers;    // of each code if they are not integers, or null
};

// Twice the numbers of e2m1, plus 12.
constexpr uint8_t kE2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                               12, 11, 10, 9,  8,  6,  4,  0};

// NormalFloat, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, appendix E.
constexpr float kNf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f};

constexpr Format kFormats[] = {
    {"int8", 8, 4, 128, 128, 1.0f, nullptr, nullptr},
    {"int4", 4, 8, 128, 8, 1.0f, nullptr, nullptr},
    {"int3", 3, 16, 192, 4, 1.0f, nullptr, nullptr},
    {"int2", 2, 16, 128, 2, 1.0f, nullptr, nullptr},
    {"ternary", 2, 16, 128, 1, 1.0f, nullptr, nullptr},
    {"e2m1", 4, 8, 128, 12, 0.5f, kE2m1, nullptr},
    {"nf4", 4, 8, 128, 0, 1.0f, nullptr, kNf4},
};

// Weights whose zeros are left out; a unit has so many bytes before they are.
constexpr Format kSparseFormats[] = {
    {"int8", 8, 4, 128, 128, 1.0f, nullptr, nullptr},
    {"bfloat16", 16, 4, 256, 0, 1.0f, nullptr, nullptr},
    {"float32", 32, 4, 512, 0, 1.0f, nullptr, nullptr},
};

}  // namespace jaxopt_compress
