"""``selfspec-export.json``: what reads back, what loads of older versions, and what is refused by name."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.report.export import print_export
from selfspec_tune.results import MANIFEST, ExportManifest, Verification
from tests.results_kit import EXPORT, OLDEST_EXPORT, VERIFIED


def manifest(**fields: Any) -> ExportManifest:
    return ExportManifest.from_dict(EXPORT | fields, origin=MANIFEST)


@pytest.mark.parametrize("value", [EXPORT, EXPORT | {"verified": VERIFIED}, EXPORT | {"gguf": "/models/t.gguf"}])
def test_a_manifest_reads_back_as_it_was(value: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    found = ExportManifest.load(tmp_path / MANIFEST)
    assert found.to_dict() == value
    assert found.skip_set() == SkipSet(2, (0,))
    assert found.target == (value["gguf"] or "org/tiny", None)
    found.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == value


@pytest.mark.parametrize("more", [(), ("gguf",), ("gguf", "read_prompts"), ("gguf", "read_prompts", "settings")])
def test_a_manifest_of_any_older_version_loads(more: tuple[str, ...]) -> None:
    found = ExportManifest.from_dict(OLDEST_EXPORT | {name: EXPORT[name] for name in more}, origin=MANIFEST)
    assert (found.read_prompts is None) == ("read_prompts" not in more)
    assert found.exit_threshold == (0.5 if "settings" in more else 0.0)
    assert found.sampling.temperature == 0


def test_a_format_that_this_program_lacks_loads_too() -> None:
    assert manifest(format="onnx").format == "onnx"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schema": "other"}, "holds other; expected schema selfspec-tune/export"),
        ({"version": 2}, "version 2 .* reads up to 1"),
        ({"version": 0}, "version"),
        ({"format": 5}, "format"),
        ({"model": None}, "model"),
        ({"model_fingerprint": 5}, "model_fingerprint"),
        ({"skip": {"attention": [0]}, "layers": []}, "more layers' attention than layers' mlp, or fewer"),
        ({"skip": {}, "layers": []}, "at least one layer"),
        ({"layers": [*EXPORT["layers"], {"attention": None, "mlp": None}]}, "without attention and without mlp"),
        ({"skip": {"attn": [0]}}, "skip.*attn"),
        ({"skip": {"attention": [1], "mlp": []}}, "layers and skip do not hold the attention"),
        ({"skip": {"attention": [0], "mlp": [1]}}, "layers and skip do not hold the mlp"),
        ({"skip": {"attention": [0], "mlp": [2, 3]}}, "attention than layers' mlp"),
        (
            {"layers": [{"attention": 1, "mlp": 1}, {"attention": None, "mlp": 0}]},
            "layers and skip do not hold the mlp",
        ),
        ({"layers": [{"attention": -1, "mlp": 0}]}, "layers.0.attention"),
        ({"layers": [{"attention": 1}]}, "layers.0.mlp"),
        ({"draft_bytes": -1}, "draft_bytes"),
        ({"draft_bytes": 10**400}, "draft_bytes"),
        ({"target_bytes": "90"}, "target_bytes"),
        ({"draft_tokens": 0}, "draft_tokens"),
        ({"draft_tokens": True}, "draft_tokens"),
        ({"settings": {"exit_threshold": 1.5}}, "settings.exit_threshold is 1.5; expected a number from 0 to 1"),
        ({"settings": {"exit_threshold": None}}, "settings.exit_threshold is null"),
        ({"settings": {"exit_threshold": "x"}}, "settings.exit_threshold"),
        ({"settings": {"experts": 0}}, "settings.experts is 0; expected a whole number from 1"),
        ({"settings": {"experts": 1.5}}, "settings.experts is 1.5"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p"),
        ({"generation_config": []}, "generation_config"),
        ({"launch": {"vllm": 5}}, "launch.vllm"),
        ({"notes": "x"}, "notes"),
        ({"files": {"config.json": -2}}, "files"),
        ({"files": ["config.json"]}, "files"),
        ({"read_prompts": [5]}, "read_prompts.0"),
        ({"verified": {}}, "verified.runtime"),
        ({"verified": VERIFIED | {"verdict": "fine"}}, "verdict is 'fine'; expected exact, close, different"),
        ({"verified": VERIFIED | {"drafted": -1}}, "verified.drafted"),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_key(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s){MANIFEST}.*({reason})"):
        manifest(**fields)


@pytest.mark.parametrize("name", sorted(OLDEST_EXPORT))
def test_what_every_version_has_is_needed(name: str) -> None:
    value = {key: field for key, field in EXPORT.items() if key != name}
    with pytest.raises(FileFormatError, match=name):
        ExportManifest.from_dict(value, origin=MANIFEST)


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "exact"),
        ({"logprob_difference": None}, "exact"),
        ({"logprob_difference": 0.1}, "close"),
        ({"equal_tokens": 96, "accepted": 39}, "close"),
        ({"equal_tokens": 90}, "different"),
        ({"same_texts": 2}, "different"),
        ({"same_texts": 2, "rounds": True}, "close"),
        ({"accepted": 10}, "different"),
    ],
)
def test_the_verdict_follows_from_the_counts(fields: dict[str, Any], verdict: str) -> None:
    assert Verification.model_validate(VERIFIED | fields).verdict == verdict


def test_a_draft_whose_target_has_no_known_size_is_printed() -> None:
    console = Console(width=200, file=StringIO())
    print_export(console, manifest(target_bytes=None, draft_bytes=3 * 2**20), Path("draft"))
    assert "2 layers, 1 of them whole; 3 MiB of weights: a server" in console.file.getvalue()  # type: ignore[attr-defined]
