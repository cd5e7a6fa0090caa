"""Wheels: one without compiled code for every platform, and one that brings its kernels along."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from selfspec_tune.cpu import LEVEL_VARIABLE, chosen_level
from selfspec_tune.engine.kernels import binding, build, compilers
from selfspec_tune.engine.kernels.build import MANIFEST, Manifest, library_name
from selfspec_tune.errors import SelfSpecError
from tests.engine_kit import needs_compiler
from tests.scripts_kit import load_script, run_script

ROOT = Path(__file__).resolve().parents[1]
HOME = "selfspec_tune/engine/kernels/prebuilt"

_STATUS = """
import sys
sys.modules["ziglang"] = None
import selfspec_tune
from selfspec_tune.engine.kernels import status
print(selfspec_tune.__file__)
print(status())
"""


def packed(out: Path, **variables: str) -> Path:
    """The wheel that hatchling makes of this checkout."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def test_by_default_a_wheel_fits_every_platform(tmp_path: Path) -> None:
    wheel = packed(tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "selfspec_tune/engine/kernels/c/kernels.c" in names
    assert not [name for name in names if name.startswith(f"{HOME}/")]


@needs_compiler
def test_an_installed_wheel_with_kernels_needs_no_compiler(tmp_path: Path) -> None:
    level, made = chosen_level(), build.built(binding.ABI)
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    content = made.path.read_bytes()
    (kernels / library_name(level)).write_bytes(content)
    manifest = Manifest(
        sources=compilers.source_digest(),
        flags=compilers.FLAGS,
        compiler=made.maker,
        libraries={library_name(level): sha256(content).hexdigest()},
    )
    (kernels / MANIFEST).write_text(manifest.model_dump_json())

    platform = "manylinux_2_17_x86_64"
    variables = {"SELFSPEC_TUNE_WHEEL_PLATFORM": platform, "SELFSPEC_TUNE_WHEEL_KERNELS": str(kernels)}
    wheel = packed(tmp_path / "dist", **variables)
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    others = [path for path in sys.path if path and Path(path) != ROOT]
    environment = {"PYTHONPATH": os.pathsep.join((str(site), *others)), "SELFSPEC_TUNE_CACHE": str(tmp_path / "cache")}
    environment[LEVEL_VARIABLE] = level.name
    command = [sys.executable, "-c", _STATUS]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, status = run.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert status == f"native kernels {level.name}, prebuilt by {made.maker}"
    assert not (tmp_path / "cache").exists()


def test_a_library_for_a_later_glibc_is_refused() -> None:
    check = load_script("build_wheels").check_glibc
    check("kernels.so", b"\0GLIBC_2.2.5\0GLIBC_2.17\0")
    with pytest.raises(SelfSpecError, match=r"kernels\.so needs glibc 2\.34, and the wheel is for 2\.17"):
        check("kernels.so", b"\0GLIBC_2.2.5\0GLIBC_2.34\0")


def test_wheels_for_other_machines_and_without_zig_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compilers, "find_spec", lambda name: None)
    for machines, problem in (("vax", "no kernels for 'vax'; there are x86_64, aarch64"), ("x86_64", "zig is needed")):
        assert run_script(monkeypatch, "build_wheels", "--out", str(tmp_path), "--machines", machines) == 2
        assert problem in capsys.readouterr().err
