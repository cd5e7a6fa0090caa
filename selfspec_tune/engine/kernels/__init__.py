"""Our own CPU kernels: built on first use, the same bits for any number of tokens.

compilers ─► store ─► build ─► binding (ctypes) ─► weights (described, or packed as int8 and int4)
"""

from __future__ import annotations

from selfspec_tune.engine.kernels.binding import status

__all__ = ["status"]
