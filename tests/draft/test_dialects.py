from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.draft.dialects import DIALECTS, Dialect, parse_skip_set, read_skip_set, stated_depth, to_dialect
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, SkipSetError

SUBLAYER_DIALECTS = [Dialect.SELF_SD, Dialect.SWIFT, Dialect.KNN_SSD, Dialect.KNAPSPEC]
LAYER_DIALECTS = [Dialect.CONFLAYERS, Dialect.ECONOMIZE]
MODEL = "llama-2-13b"


def write(folder: Path, value: Any) -> Path:
    path = folder / "skip_layers.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def assert_round_trip(folder: Path, skip_set: SkipSet, dialect: Dialect) -> None:
    path = write(folder, to_dialect(skip_set, dialect, model_name=MODEL, task="gsm8k"))
    assert read_skip_set(path, num_layers=skip_set.num_layers) == (skip_set, dialect)


@pytest.mark.parametrize("dialect", SUBLAYER_DIALECTS)
@settings(deadline=None, max_examples=50)
@given(flags=st.integers(1, 40).flatmap(lambda n: st.lists(st.booleans(), min_size=2 * n, max_size=2 * n)))
def test_dialects_of_sublayers_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, dialect: Dialect, flags: list[bool]
) -> None:
    assert_round_trip(tmp_path_factory.mktemp("dialect"), SkipSet.from_flags(flags), dialect)


@pytest.mark.parametrize("dialect", LAYER_DIALECTS)
@settings(deadline=None, max_examples=50)
@given(layers=st.sets(st.integers(0, 29)))
def test_dialects_of_whole_layers_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, dialect: Dialect, layers: set[int]
) -> None:
    skip_set = SkipSet(30, tuple(layers), tuple(layers))
    assert_round_trip(tmp_path_factory.mktemp("dialect"), skip_set, dialect)


@settings(deadline=None, max_examples=50)
@given(exit_layer=st.integers(1, 30))
def test_an_exit_layer_reads_back_as_written(tmp_path_factory: pytest.TempPathFactory, exit_layer: int) -> None:
    layers = tuple(range(exit_layer, 30))
    skip_set = SkipSet(30, layers, layers)
    assert to_dialect(skip_set, "layerskip", model_name=MODEL) == {"exit_layer": exit_layer}
    assert_round_trip(tmp_path_factory.mktemp("dialect"), skip_set, Dialect.LAYERSKIP)


def test_every_dialect_is_covered_by_a_round_trip() -> None:
    assert {*SUBLAYER_DIALECTS, *LAYER_DIALECTS, Dialect.LAYERSKIP} == set(DIALECTS)


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        ("self-sd", {"llama-2-13b": {"attention": [1, 2], "mlp": [1, 2]}}),
        ("swift", {"llama-2-13b_gsm8k": {"attention": [1, 2], "mlp": [1, 2]}}),
        ("knn-ssd", {"gsm8k_llama-2-13b": {"attention": [1, 2], "mlp": [1, 2]}}),
        ("conflayers", {"llama-2-13b_gsm8k": {"layers": [1, 2]}}),
        ("economize", {"skip_layers": [2, 3]}),
        ("layerskip", {"exit_layer": 1}),
        ("knapspec", [0, 0, 1, 1, 1, 1]),
    ],
)
def test_a_set_is_written_as_each_project_writes_it(dialect: str, expected: Any) -> None:
    skip_set = SkipSet(3, (1, 2), (1, 2))
    assert to_dialect(skip_set, dialect, model_name=MODEL, task="gsm8k") == expected


@pytest.mark.parametrize(
    ("value", "dialect"),
    [
        ({"attention": [1], "mlp": [1]}, "self-sd"),
        ({"codellama-13b": {"attention": [1], "mlp": [1]}}, "self-sd"),
        ({"llama-2-13b_chat_cnndm": {"attention": [1], "mlp": [1]}}, "swift"),
        ({"math_geometry_llama-2-13b": {"attention": [1], "mlp": [1]}}, "knn-ssd"),
        ({"cnndm-1_llama-2-13b-chat": {"attention": [1], "mlp": [1]}}, "knn-ssd"),
        ({"llama-3-8b_gsm8k": {"layers": [1]}}, "conflayers"),
        ({"skip_layers": [2]}, "economize"),
        ("skip_layers=(2,)", "economize"),
        ("engine = Engine(model, skip_layers=[2])\n", "economize"),
        ({"exit_layer": 1}, "layerskip"),
        ({"assistant_early_exit": 1}, "layerskip"),
        ("1", "layerskip"),
        ([0, 0, 1, 1], "knapspec"),
    ],
)
def test_files_of_other_projects_are_recognised(tmp_path: Path, value: Any, dialect: str) -> None:
    assert read_skip_set(write(tmp_path, value), num_layers=2) == (SkipSet(2, (1,), (1,)), dialect)


def own_file(**fields: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "schema": "selfspec-tune/skip-config",
        "version": 1,
        "model": {"id": "m", "num_layers": 4},
        "skip": {"attention": [1], "mlp": [2, 3]},
    }
    return value | fields


def test_our_own_file_states_its_depth_itself(tmp_path: Path) -> None:
    path = write(tmp_path, own_file())
    assert read_skip_set(path, num_layers=None) == (SkipSet(4, (1,), (2, 3)), "skip-config")
    assert parse_skip_set(str(path), 4) == SkipSet(4, (1,), (2, 3))


def test_a_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SkipSetError, match="for a model of 4 layers, but this model has 30"):
        read_skip_set(write(tmp_path, own_file()), num_layers=30)
    with pytest.raises(SkipSetError, match="for a model of 2 layers"):
        read_skip_set(write(tmp_path, [0, 0, 1, 1]), num_layers=30)


def test_a_bench_file_is_no_skip_set(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"expected a skip\.json"):
        read_skip_set(write(tmp_path, own_file(schema="selfspec-tune/bench", skip=None)), num_layers=None)


def test_a_file_of_several_sets_asks_for_one_by_key(tmp_path: Path) -> None:
    value = {"a-13b": {"attention": [1], "mlp": []}, "a-70b": {"attention": [], "mlp": [1]}}
    path = write(tmp_path, value)
    with pytest.raises(SkipSetError, match=r"holds 2 skip sets; name one, .*#a-13b'. Keys: a-13b, a-70b"):
        read_skip_set(path, num_layers=2)
    with pytest.raises(SkipSetError, match="no skip set 'b'; keys: a-13b, a-70b"):
        read_skip_set(path, num_layers=2, key="b")
    assert read_skip_set(path, num_layers=2, key="a-70b")[0] == SkipSet(2, mlp=(1,))
    assert read_skip_set(f"{path}#a-70b", num_layers=2)[0] == SkipSet(2, mlp=(1,))
    assert parse_skip_set(f"{path}#a-13b", 2) == SkipSet(2, attention=(1,))


def test_a_file_without_a_depth_needs_the_model(tmp_path: Path) -> None:
    with pytest.raises(SkipSetError, match="name it with `model`"):
        read_skip_set(write(tmp_path, {"exit_layer": 8}), num_layers=None)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"exit_layer": 3}, SkipSetError, "exit layer 3; expected 1 to 2"),
        ({"exit_layer": True}, SkipSetError, "exit layer true"),
        ({"skip_layers": [0]}, SkipSetError, "layer 0 counted from 1; expected 1 to 2"),
        ({"a": {"attention": [2], "mlp": []}}, SkipSetError, "attention layer 2 is out of range"),
        ({"a": {"attention": [[0]], "mlp": []}}, FileFormatError, "expected a list of layer numbers"),
        ({"a": {"attention": "0", "mlp": []}}, FileFormatError, "expected a list of layer numbers"),
        ([0, 1, 2, 3], FileFormatError, "2 zeros or ones for each layer"),
        ([], FileFormatError, "2 zeros or ones for each layer"),
        ({}, FileFormatError, "no skip set in a form known here"),
        ("null", FileFormatError, "no skip set in a form known here"),
        ("true", FileFormatError, "no skip set in a form known here"),
        ("{", FileFormatError, "not valid JSON"),
    ],
)
def test_what_is_no_skip_set_is_refused_with_what_was_expected(
    tmp_path: Path, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_skip_set(write(tmp_path, value), num_layers=2)


@pytest.mark.parametrize("dialect", [*LAYER_DIALECTS, Dialect.LAYERSKIP])
def test_half_layers_are_refused_by_name_where_only_whole_ones_can_be_said(dialect: Dialect) -> None:
    with pytest.raises(SkipSetError, match=f"{dialect} can skip whole layers only, and of layers 3, 5"):
        to_dialect(SkipSet(8, (3, 4), (4, 5)), dialect, model_name=MODEL, task="gsm8k")


def test_layers_that_leave_a_gap_are_no_early_exit() -> None:
    with pytest.raises(SkipSetError, match="layers 6 are kept, and layers 5, 7 are skipped"):
        to_dialect(SkipSet(8, (5, 7), (5, 7)), "layerskip", model_name=MODEL)
    with pytest.raises(SkipSetError, match="no layer is left"):
        to_dialect(SkipSet(2, (0, 1), (0, 1)), "layerskip", model_name=MODEL)


@pytest.mark.parametrize("dialect", ["swift", "knn-ssd", "conflayers"])
def test_dialects_keyed_by_task_need_one(dialect: str) -> None:
    with pytest.raises(SkipSetError, match="name one with `task`"):
        to_dialect(SkipSet(2), dialect, model_name=MODEL)


def test_an_unknown_dialect_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SkipSetError, match="expected one of self-sd, swift"):
        to_dialect(SkipSet(2), "esperanto", model_name=MODEL)


def test_a_text_that_is_no_file_is_read_as_the_text_form() -> None:
    assert parse_skip_set("attn 1 · mlp 0", 2) == SkipSet(2, (1,), (0,))
    with pytest.raises(SkipSetError, match="expected a form like"):
        parse_skip_set("attn 1 " * 500 + "!", 2)


@pytest.mark.parametrize("path", ["missing.json", "folder/missing", "missing.json#a-13b"])
def test_a_path_that_does_not_exist_is_not_taken_for_text(path: str) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        parse_skip_set(path, 2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_knapspecs_list_states_a_depth(tmp_path: Path, dialect: Dialect) -> None:
    skip_set = SkipSet(12, (10, 11), (10, 11))
    path = write(tmp_path, to_dialect(skip_set, dialect, model_name=MODEL, task="gsm8k"))
    assert stated_depth(path) == (12 if dialect is Dialect.KNAPSPEC else None)


def test_an_empty_list_states_no_depth(tmp_path: Path) -> None:
    assert stated_depth(write(tmp_path, [])) is None
