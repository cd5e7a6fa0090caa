"""Our own CPU kernels: built on first use, the same bits for any number of tokens.

build ─► library (ctypes) ─► packing (int8, int4 copies) ─► runner
"""

from selfspec_tune.engine.native.build import status
from selfspec_tune.engine.native.runner import NativeRunner
from selfspec_tune.engine.native.support import native_unsupported_reason

__all__ = ["NativeRunner", "native_unsupported_reason", "status"]
