"""Our own CPU kernels: built on first use, the same bits for any number of tokens.

compilers ─► store ─► build ─► binding (ctypes) ─► weights (packed as int8 and int4) ─► structures (by plan)
"""

from __future__ import annotations

from selfspec_tune.engine.kernels.binding import status

__all__ = ["status"]
