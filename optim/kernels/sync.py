"""Synchronisation of the programs of a persistent kernel, in PTX; for Triton and for Gluon.

A counter in memory counts arrivals at the ends of phases. One thread of a program speaks for it, between
barriers of the program's own threads.
"""

from triton.language import constexpr

# [counter]: add one, after all that was written before is there for the others
ARRIVE = constexpr(
    "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.eq.u32 p, t, 0;"
    " @p red.release.gpu.global.add.u32 [$1], 1; mov.b32 $0, 0; }"
)
# [counter], arrivals: until so many have arrived
AWAIT = constexpr(
    "{ .reg .pred p; .reg .u32 t; mov.u32 t, %tid.x; setp.ne.u32 p, t, 0; @p bra DONE;"
    " AGAIN: ld.acquire.gpu.global.u32 t, [$1]; setp.lt.s32 p, t, $2; @p bra AGAIN;"
    " DONE: mov.b32 $0, 0; }"
)
# [address]: bring its line into the L2 cache
PREFETCH = constexpr("prefetch.global.L2 [$1]; mov.b32 $0, 0;")
