#include "attend.cuh"
ATTEND_SIZES(f16, f16)
