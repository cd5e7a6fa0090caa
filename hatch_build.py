"""Puts compiled kernels into a wheel for one platform; `scripts/build_wheels` asks for it.

Without the variables the wheel holds no compiled code and fits every platform.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLATFORM_VARIABLE = "SELFSPEC_TUNE_WHEEL_PLATFORM"  # the last part of the wheel's tag
KERNELS_VARIABLE = "SELFSPEC_TUNE_WHEEL_KERNELS"  # the folder of libraries and their manifest
_HOME = "selfspec_tune/engine/kernels/prebuilt"


class PlatformWheel(BuildHookInterface[Any]):
    """Sets the wheel's tag and adds the libraries."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatch calls this before it packs; an editable installation stays as it is."""
        platform = os.environ.get(PLATFORM_VARIABLE)
        if not platform or version == "editable":
            return
        files = sorted(Path(os.environ[KERNELS_VARIABLE]).iterdir())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["force_include"].update({str(path): f"{_HOME}/{path.name}" for path in files})
