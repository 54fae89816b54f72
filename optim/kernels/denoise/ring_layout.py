"""Sizes that the ring kernel and its launcher share."""

ROWS, WARPS = 16, 8
RUN = 32  # of K that lie together in shared memory
COLUMNS = 32  # of a tile of qkv, and of each of two tiles of gate and up
X_COLUMNS = 16  # of the residual stream in a tile
