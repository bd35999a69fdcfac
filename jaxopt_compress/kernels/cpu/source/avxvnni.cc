#include "avx2.cc"
