"""Models under the names that people have for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from selfspec_tune.errors import FileFormatError, UnknownModelError, UsageError
from selfspec_tune.export.checkpoint import gguf_of
from selfspec_tune.models import load_model
from selfspec_tune.models.origin import find_origin, stated_context_length
from tests import kit


@pytest.fixture(scope="module")
def gguf_file(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.tiny_gguf(tiny_llama_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def blob(gguf_file: Path, tmp_path: Path) -> Path:
    """A GGUF file as the hub's cache keeps it, under its hash."""
    return Path(shutil.copy(gguf_file, tmp_path / "9f86d081884c7d65"))


def test_a_link_to_a_blob_is_what_its_name_says(blob: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    first, second = tmp_path / "snapshots" / "tiny-Q4_0.gguf", tmp_path / "mine.gguf"
    first.symlink_to("../" + blob.name)
    second.symlink_to(first)
    for link in (first, second):
        assert find_origin(str(link)).location == str(link)
        assert gguf_of(str(link)) == link
        assert load_model(str(link), dtype="float32", device="cpu").id == str(link)


@pytest.mark.parametrize("name", ["TINY.GGUF", "tiny.q4.gguf.bak", "no-suffix"])
def test_magic_bytes_tell_a_gguf_file_under_any_name(gguf_file: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(gguf_file, tmp_path / name))
    assert (find_origin(str(path)).source, gguf_of(str(path))) == ("gguf", path)
    assert load_model(str(path), dtype="float32", device="cpu").num_layers == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"once upon a time", "no complete GGUF file.*it begins with b'once upon a time'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:9f86", "pointer of Git LFS.*git lfs pull"),
    ],
)
def test_a_gguf_file_in_name_only_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "text.gguf").write_bytes(content)
    with pytest.raises(FileFormatError, match=reason):
        load_model(str(tmp_path / "text.gguf"), device="cpu")


def test_a_clone_without_its_large_files_says_what_to_do(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:9f86")
    with pytest.raises(FileFormatError, match=r"model\.safetensors is a pointer of Git LFS\. Fetch them"):
        load_model(str(directory), device="cpu")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to("blobs/gone")
    with pytest.raises(UnknownModelError, match="a link to a file that is not there: blobs/gone"):
        find_origin(str(tmp_path / "gone.gguf"))


@pytest.mark.parametrize("name", ["x" * 5000, "nobody~/\0model", "~nosuchuser/model", ""])
def test_a_name_that_no_file_can_have_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError, match="Unknown model"):
        load_model(name, device="cpu")


def test_a_folder_of_gguf_files_beside_a_config_points_to_the_file(gguf_file: Path, tmp_path: Path) -> None:
    shutil.copy(gguf_file, tmp_path / "tiny.gguf")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UnknownModelError, match=r"Give the file itself: .*tiny\.gguf"):
        load_model(str(tmp_path), device="cpu")


def test_gguf_files_of_the_hub_point_to_the_file(hub_cache: Path, gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    shutil.copy(gguf_file, tmp_path / "files" / "tiny-Q4_0.gguf")
    snapshot = kit.plant_in_hub_cache(hub_cache, "someone/tiny-GGUF", tmp_path / "files")
    with pytest.raises(UnknownModelError, match=r"GGUF files alone. Give the file itself: .*tiny-Q4_0\.gguf"):
        load_model("someone/tiny-GGUF", device="cpu")
    assert load_model(str(snapshot / "tiny-Q4_0.gguf"), device="cpu").source == "gguf"


def test_an_adapter_alone_is_refused_with_a_word_on_merging(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta-llama/Llama-3.2-1B"}))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UnknownModelError, match=r"holds an adapter .* and no model\. Merge it"):
        load_model(str(tmp_path), device="cpu")
    shutil.copy(tiny_llama_dir / "config.json", tmp_path)
    with pytest.raises(UnknownModelError, match=r"holds an adapter .* and no model\. Merge it"):
        load_model(str(tmp_path), device="cpu")


def test_an_adapter_beside_weights_is_said(tiny_llama_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    assert load_model(str(directory), device="cpu").notes == ()
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(directory)}))
    (note,) = load_model(str(directory), device="cpu").notes
    assert "an adapter lies beside the weights" in note


def test_an_adapter_of_the_hub_is_refused_with_a_word_on_merging(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    kit.plant_in_hub_cache(hub_cache, "someone/lora", tmp_path / "adapter")
    with pytest.raises(UnknownModelError, match="Merge it into its base"):
        load_model("someone/lora", device="cpu")


@pytest.mark.parametrize("place", ["local", "gguf"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(place: str, tiny_llama_dir: Path, gguf_file: Path) -> None:
    with pytest.raises(UsageError, match="which has no revisions"):
        load_model(str(tiny_llama_dir if place == "local" else gguf_file), device="cpu", revision="main")


@pytest.mark.parametrize("depth", [10**9, 0, -1])
@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
def test_a_depth_that_no_model_has_is_refused_before_it_is_built(
    tiny_llama_dir: Path, tmp_path: Path, key: str, depth: int
) -> None:
    directory = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {key: depth}))
    with pytest.raises(FileFormatError, match=f"states {depth} layers"):
        load_model(str(directory), device="cpu")
    (directory / "config.json").write_text(json.dumps(config | {"text_config": {key: depth}}))
    with pytest.raises(FileFormatError, match=f"states {depth} layers"):
        load_model(str(directory), device="cpu")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"max_position_embeddings": 64, "text_config": {"max_position_embeddings": 128}}, 128),
        ({"max_position_embeddings": 64, "max_seq_len": 256}, 256),
        ({"max_position_embeddings": "64"}, None),
        ([], None),
    ],
)
def test_a_context_is_known_before_anything_is_loaded(
    tmp_path: Path, hub_cache: Path, config: object, length: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stated_context_length(str(tmp_path)) == length
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(tmp_path / "config.json", folder)
    kit.plant_in_hub_cache(hub_cache, "someone/tiny", folder)
    assert stated_context_length("someone/tiny") == length
    assert stated_context_length("someone/else") is None


def test_of_a_gguf_file_it_is_not_asked(gguf_file: Path) -> None:
    assert stated_context_length(str(gguf_file)) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("https://huggingface.co/meta-llama/Llama-3.2-1B", "`model` meta-llama/Llama-3.2-1B"),
        ("https://hub.example/org/name/tree/v2/", "`model` org/name `revision` v2"),
        ("https://hub.example/org/name/tree/refs%2Fpr%2F1", "`model` org/name `revision` refs/pr/1"),
        ("https://hub.example/org/name?library=x", "`model` org/name"),
        ("https://hub.example/org/name/resolve/main/small.Q4_K_M.gguf", "hf download org/name small.Q4_K_M.gguf"),
        ("hf:org/name", "`model` org/name"),
        ("hf://models/org/name", "`model` org/name"),
        ("org/name@v2", "`model` org/name `revision` v2"),
        ("llama-3-8b@main", "`model` llama-3-8b `revision` main"),
        ("org/name-GGUF:Q4_K_M", "Q4_K_M reads like a quantisation"),
        ("llama3:8b", "as ollama and llama.cpp write it. Download the GGUF file"),
    ],
)
def test_a_name_as_other_tools_write_it_is_told_what_to_give(name: str, hint: str) -> None:
    with pytest.raises(UnknownModelError) as refused:
        find_origin(name)
    assert hint in str(refused.value)


@pytest.mark.parametrize("name", ["https://", "@", ":", "c:", "a@", "http://x", "C:/models/x", "a/b/c@d", "./x:y"])
def test_what_is_no_such_name_is_just_unknown(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"^Unknown model"):
        find_origin(name)
