#include "attend.cuh"
ATTEND_SIZES(f32, float)
