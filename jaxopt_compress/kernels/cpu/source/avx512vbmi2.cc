#include "avx512.cc"
