from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from selfspec_tune import provenance


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("not here")


def test_provenance_is_json_and_states_program_machine_and_settings() -> None:
    record = provenance.collect(
        model={"id": "m", "fingerprint": "f"},
        dtype="float32",
        device="cpu",
        gpu="Some GPU",
        threads=2,
        seed=7,
        argv=["/somewhere/bin/selfspec-tune", "search", "--seed", "7"],
        prompts={"seed": 1},
    )
    assert json.loads(json.dumps(record)) == record
    assert record["command"] == ["selfspec-tune", "search", "--seed", "7"]
    assert record["model"] == {"id": "m", "fingerprint": "f"}
    assert (record["dtype"], record["device"], record["seed"]) == ("float32", "cpu", 7)
    assert record["prompts"] == {"seed": 1}
    assert record["packages"].keys() >= {"torch", "transformers", "optuna"}
    assert record["hardware"]["gpu"] == "Some GPU"
    assert record["hardware"]["threads"] == 2
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory_gib"] > 0


def test_a_container_s_quota_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "cpu_quota", lambda: 2.5)
    assert provenance.collect()["hardware"]["cpu_quota"] == 2.5
    monkeypatch.setattr(provenance, "cpu_quota", lambda: None)
    assert provenance.collect()["hardware"]["cpu_quota"] is None


def test_provenance_is_stamped_in_universal_time() -> None:
    created = datetime.fromisoformat(provenance.collect()["created"])
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60


def test_provenance_names_neither_user_nor_host() -> None:
    text = json.dumps(provenance.collect(argv=["selfspec-tune"]))
    assert "HOME" not in os.environ or f"{os.environ['HOME']}/" not in text
    assert not platform.node() or f'"{platform.node()}"' not in text


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert provenance.package_version("selfspec-tune-no-such-package") is None
    assert provenance.package_version("numpy")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_checkout_tells_its_commit_and_whether_files_differ(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert provenance.package_commit(package) is None
    git(tmp_path, "init")
    assert provenance.package_commit(package) is None
    (package / "a.py").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = provenance.package_commit(package)
    assert commit is not None
    assert len(commit) == 40
    (package / "a.py").write_text("x = 1\n")
    assert provenance.package_commit(package) == f"{commit}+"


def test_a_package_inside_someone_elses_repository_tells_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init")
    package = tmp_path / "venv" / "package"
    package.mkdir(parents=True)
    assert provenance.package_commit(package) is None


def test_what_a_system_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", fail)
    monkeypatch.setattr(psutil, "cpu_freq", fail)
    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert provenance.load_average() is None
    assert provenance.clock_mhz() is None
    assert provenance.cpu_model() is None


def test_a_clock_of_zero_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    assert provenance.clock_mhz() is None
