"""Other projects' skip sets as a skip.json of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.draft.dialects import Dialect, to_dialect
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import SelfSpecError, SkipSetError, UsageError
from selfspec_tune.export.skip_files import import_skip_set
from selfspec_tune.models import load_model
from selfspec_tune.results import SkipConfig
from tests import kit

ANY_LAYERS = st.sets(st.integers(0, 3)).map(sorted)


def representable(dialect: Dialect, attention: list[int], mlp: list[int]) -> SkipSet:
    """A skip set that the dialect can say."""
    if dialect in (Dialect.CONFLAYERS, Dialect.ECONOMIZE):
        mlp = attention
    if dialect is Dialect.LAYERSKIP:
        attention = mlp = list(range(max(attention, default=3) or 1, 4))
    return SkipSet(4, tuple(attention), tuple(mlp))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@pytest.mark.parametrize("dialect", Dialect)
@given(attention=ANY_LAYERS, mlp=ANY_LAYERS)
def test_what_is_exported_comes_back(
    dialect: Dialect, attention: list[int], mlp: list[int], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    skip_set = representable(dialect, attention, mlp)
    file, out = tmp_path / "theirs.json", tmp_path / "skip.json"
    file.write_text(json.dumps(to_dialect(skip_set, dialect, model_name="tiny-1b", task="code")))
    config, found = import_skip_set(str(file), str(tiny_llama_dir), out, force=True)
    assert found == dialect
    assert config.skip_set() == SkipConfig.load(out).skip_set() == skip_set


def test_an_import_is_of_the_model_at_hand_and_claims_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "skip_layers.json", tmp_path / "skip.json"
    file.write_text(json.dumps({"tiny": {"attention": [1], "mlp": [2]}}))
    config, dialect = import_skip_set(str(file), str(tiny_llama_dir), out)
    loaded = load_model(str(tiny_llama_dir), dtype="float32", device="cpu")
    assert config.model.fingerprint == loaded.fingerprint
    assert (config.score.verdict, config.score.num_prompts, config.score.decode_speedup) == ("undecided", 0, None)
    assert config.provenance["imported_from"] == {"dialect": dialect, "file": "skip_layers.json"}


def test_a_file_is_not_overwritten_and_ours_not_imported(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "skip_layers.json", tmp_path / "skip.json"
    file.write_text(json.dumps({"tiny": {"attention": [1], "mlp": [2]}}))
    import_skip_set(str(file), str(tiny_llama_dir), out)
    with pytest.raises(UsageError, match="`force`"):
        import_skip_set(str(file), str(tiny_llama_dir), out)
    with pytest.raises(SkipSetError, match=r"a skip\.json of ours already"):
        import_skip_set(str(out), str(tiny_llama_dir), tmp_path / "other.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[0, 1, 1]", "2 zeros or ones for each layer"),
        ('{"tiny": {"attention": [9], "mlp": []}}', "theirs.json#tiny: attention layer 9 is out of range"),
        ('{"tiny": {"attention": [1], "mpl": [2]}}', "theirs.json#tiny has the keys attention, mpl; expected"),
        ('{"tiny": {"layers": [1], "mlp": [2]}}', "or layers alone"),
        ('{"attention": [1]}', "has the keys attention; expected attention and mlp"),
        ('{"a": 3}', 'Expected for example {"model"'),
        ('{"tiny": {"attention": "all", "mlp": []}}', "expected a list of layer numbers"),
        ('{"a": {"attention": [1], "mlp": []}, "b": {"attention": [2], "mlp": []}}', "2 skip sets; name one, as in"),
        ('{"exit_layer": 40}', "exit layer 40"),
    ],
)
def test_a_malformed_file_is_refused_by_name(content: str, said: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(content)
    with pytest.raises(SelfSpecError) as raised:
        import_skip_set(str(file), str(tiny_llama_dir), tmp_path / "skip.json")
    assert said in str(raised.value)
    assert "theirs.json" in str(raised.value)
    assert not (tmp_path / "skip.json").exists()


def test_the_command_says_what_came_of_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "skip_layers.json", tmp_path / "skip.json"
    file.write_text(json.dumps({"tiny": {"attention": [1], "mlp": [2]}}))
    run = CliRunner().invoke(app, ["import", str(file), "--model", str(tiny_llama_dir), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert "attn 1 · mlp 2" in run.output
    assert "selfspec-tune bench" in run.output
    shown = " ".join(CliRunner().invoke(app, ["show", str(out)]).output.split())
    assert "Imported from skip_layers.json (self-sd), not measured yet" in shown


def test_an_import_is_of_the_revision_that_is_asked_for(hub_cache: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    older = kit.plant_in_hub_cache(hub_cache, "someone/tiny", tiny_llama_dir, seed="older")
    newer = kit.plant_in_hub_cache(hub_cache, "someone/tiny", tiny_llama_dir)
    file = tmp_path / "skip_layers.json"
    file.write_text(json.dumps({"tiny": {"attention": [1], "mlp": [2]}}))
    command = ["import", str(file), "--model", "someone/tiny", "--out", str(tmp_path / "skip.json"), "--force"]
    for revision, expected in ((older.name, older), (None, newer)):
        run = CliRunner().invoke(app, [*command, *(["--revision", revision] if revision else [])])
        assert run.exit_code == 0, run.output
        assert SkipConfig.load(tmp_path / "skip.json").model.revision == expected.name
    refused = CliRunner().invoke(app, ["import", str(file), "--model", str(tiny_llama_dir), "--revision", "main"])
    assert refused.exit_code == 2
