#include "attend.cuh"
ATTEND_SIZES(q8, q8)
