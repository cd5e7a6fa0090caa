"""Links, modes and --force: an export writes and deletes nothing but its own, and copies nothing but the model's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SelfSpecError, UsageError
from selfspec_tune.export.write import export_draft
from selfspec_tune.requests import ExportRequest
from selfspec_tune.results import MANIFEST

SECRET = "a private file's text"
Export = Callable[..., Path]


@pytest.fixture
def model(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint whose files a test may replace."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


@pytest.fixture
def skips(tmp_path: Path) -> Path:
    """One whole layer of four, in another project's form, so that no model need be loaded for it."""
    file = tmp_path / "skips.json"
    file.write_text(json.dumps({"tiny": SkipSet(4, (1,), (1,)).to_dict()}))
    return file


@pytest.fixture
def export(model: Path, skips: Path, tmp_path: Path) -> Export:
    """Exports to ``tmp_path / "draft"``."""

    def run(format_: str = "hf-draft", *, force: bool = False) -> Path:
        out = tmp_path / "draft"
        export_draft(ExportRequest(skips, format_, out, str(model), force=force))
        return out

    return run


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "private" / "secret"
    file.parent.mkdir()
    file.write_text(json.dumps(SECRET))
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_link_out_of_the_model_is_not_copied(
    name: str, is_relative: bool, model: Path, secret: Path, export: Export
) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../private/secret" if is_relative else secret)
    with pytest.raises(SelfSpecError, match=f"{name} is a link to .*secret, outside the model's folder"):
        export()
    assert not (model.parent / "draft").exists()


def test_a_link_through_a_linked_folder_is_not_copied_either(model: Path, secret: Path, export: Export) -> None:
    (model / "files").symlink_to(secret.parent)
    (model / "chat_template.jinja").symlink_to("files/secret")
    with pytest.raises(FileFormatError, match="outside the model's folder"):
        export()


def test_weights_elsewhere_are_refused_by_name(model: Path, tmp_path: Path, export: Export) -> None:
    (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FileFormatError, match=r"model\.safetensors is a link to"):
        export()


def test_links_within_the_model_and_into_a_hub_cache_are_followed(model: Path, tmp_path: Path, export: Export) -> None:
    blobs = tmp_path / "cache" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, name in enumerate(["tokenizer.json", "model.safetensors", "config.json"]):
        (model / name).rename(blobs / f"{number:064}")
        (model / name).symlink_to(blobs / f"{number:064}")
    (model / "generation_config.json").rename(model / "kept.json")
    (model / "generation_config.json").symlink_to("kept.json")
    out = export()
    assert (out / "tokenizer.json").is_file()
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_a_model_by_a_link_to_its_folder_is_exported(model: Path, tmp_path: Path, skips: Path) -> None:
    (tmp_path / "alias").symlink_to(model)
    export_draft(ExportRequest(skips, "hf-draft", tmp_path / "draft", str(tmp_path / "alias")))


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("format_", ["hf-draft", "nas", "transformers-generate"])
def test_all_files_have_the_mode_that_new_files_get(format_: str, mask: int, expected: int, export: Export) -> None:
    with umask(mask):
        out = export(format_)
    assert {mode(file) for file in out.rglob("*") if file.is_file()} == {expected}


def test_what_replaces_an_export_keeps_its_modes(export: Export) -> None:
    out = export()
    out.chmod(0o750)
    (out / "config.json").chmod(0o640)
    export(force=True)
    assert (mode(out), mode(out / "config.json")) == (0o750, 0o640)


def _link_to_a_folder(out: Path) -> Path:
    (out.parent / "mine").mkdir()
    (out / "mine").symlink_to(out.parent / "mine")
    return out / "mine"


def _link_in_place_of_a_file(out: Path) -> Path:
    (out / "config.json").rename(out.parent / "mine.json")
    (out / "config.json").symlink_to(out.parent / "mine.json")
    return out / "config.json"


def _empty_folder(out: Path) -> Path:
    (out / "mine").mkdir()
    return out / "mine"


def _dangling_link(out: Path) -> Path:
    (out / "mine").symlink_to("nowhere")
    return out / "mine"


def _listed(out: Path) -> Path:
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"files": {**manifest["files"], "notes.md": 5}}))
    (out / "notes.md").write_text("years of work")
    return out / "notes.md"


def _listed_below(out: Path) -> Path:
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"files": {**manifest["files"], "mine/config.json": 5}}))
    (out / "mine").mkdir()
    (out / "mine" / "config.json").write_text("years of work")
    return out / "mine" / "config.json"


def _folder_named_like_a_file(out: Path) -> Path:
    (out / "tokenizer.json").unlink()
    (out / "tokenizer.json").mkdir()
    return out / "tokenizer.json"


@pytest.mark.parametrize(
    "put",
    [
        _link_to_a_folder,
        _link_in_place_of_a_file,
        _empty_folder,
        _dangling_link,
        _listed,
        _listed_below,
        _folder_named_like_a_file,
    ],
)
def test_force_deletes_nothing_that_no_export_wrote(put: Callable[[Path], Path], export: Export) -> None:
    mine = put(export())
    with pytest.raises(UsageError, match="holds files that no export wrote"):
        export(force=True)
    assert os.path.lexists(mine)


@pytest.mark.parametrize("files", [None, [], "config.json", 5])
def test_force_spares_a_folder_whose_manifest_lists_no_files(files: object, export: Export) -> None:
    out = export()
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"files": files}))
    with pytest.raises(UsageError, match="holds files that no export wrote"):
        export(force=True)


def test_a_verified_export_can_be_replaced_still(export: Export) -> None:
    out = export("nas")
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"verified": {}}))
    assert export("transformers-generate", force=True) == out
    assert export("hf-zero", force=True) == out


@pytest.mark.parametrize(
    "value", [[], "x", {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "a\0b"}}]
)
def test_an_index_of_another_shape_is_named(value: object, model: Path, export: Export) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(value))
    with pytest.raises(FileFormatError):
        export()


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "a" * 5000])
def test_an_index_leads_nowhere_else(name: str, model: Path, export: Export) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FileFormatError):
        export()
