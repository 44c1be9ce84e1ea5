#include "attend.cuh"
ATTEND_SIZES(bf16, bf16)
