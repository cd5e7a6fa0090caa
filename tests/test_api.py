"""The public functions refuse arguments of other types, and keywords that they do not know, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import selfspec_tune as st
from selfspec_tune.errors import UsageError

Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]
CASES: list[Case] = [
    (st.load, (5,), {}, "`source` 5: expected a text, a path or None"),
    (st.load, (b"x",), {}, "`source` b'x': expected a text, a path or None"),
    (st.load, ("x",), {"precision": 4}, "`precision` 4: expected a text or None"),
    (st.load, ("x",), {"ngram": "no"}, "`ngram` 'no': expected True, False or None"),
    (st.load, ("x",), {"trust_remote_code": "no"}, "`trust_remote_code` 'no': expected True or False"),
    (st.load, ("x",), {"max_draft_tokens": "5"}, "`max_draft_tokens` '5': expected a whole number or None"),
    (st.load, ("x",), {"exit_threshold": True}, "`exit_threshold` True: expected a number or None"),
    (st.load, ("x",), {"notice": 5}, "`notice` 5: expected a function or None"),
    (st.load, ("x",), {"polcy": "fixed"}, r"no option 'polcy' of load\(\). Did you mean policy\?"),
    (st.search, (5,), {}, "`model` 5: expected a text, a path or None"),
    (st.search, (), {"trials": 1.5}, "`trials` 1.5: expected a whole number or None"),
    (st.search, (), {"timeout": True}, "`timeout` True: expected a text, a number or None"),
    (st.search, (), {"out": b"x"}, "`out` b'x': expected a text, a path or None"),
    (st.search, (), {"out": ""}, "`out` '': expected the name of a file or folder"),
    (st.search, (), {"start_from": "x"}, "`start_from` 'x': expected a list of texts or paths or None"),
    (st.search, (), {"tasks": "code"}, "`tasks` 'code': expected a list of texts"),
    (st.search, (), {"ngram": "no"}, "`ngram` 'no': expected True or False"),
    (st.search, (), {"vocabulary": 5}, "`vocabulary` 5: expected a text"),
    (st.search, (), {"extra_memory": 5}, "`extra_memory` 5: expected a text"),
    (st.search, (), {"dtype": 5}, "`dtype` 5: expected a text"),
    (st.search, (), {"template_date": 5}, "`template_date` 5: expected a text"),
    (st.search, (), {"reporter": 5}, "`reporter` 5: expected a Reporter or None"),
    (st.search, (), {"triasl": 2}, r"no option 'triasl' of a search. Did you mean trials\?"),
    (st.search, (), {"name": "x"}, "no option 'name' of a search"),
    (st.bench, (5,), {}, "`sources` 5: expected a text or a path"),
    (st.bench, ("x",), {"rivals": "no"}, "`rivals` 'no': expected True or False"),
    (st.bench, ("x",), {"reference_prompts": "1"}, "`reference_prompts` '1': expected a whole number"),
    (st.bench, ("x",), {"early_exit": "1"}, "`early_exit` '1': expected a whole number or None"),
    (st.bench, ("x",), {"skip_files": "x"}, "`skip_files` 'x': expected a list of paths or a tuple of paths"),
    (st.bench, ("x",), {"log": "x"}, "raw runs are kept beside `out`"),
    (st.bench, ("x",), {"studies": "x"}, "no option 'studies' of a bench"),
    (st.bench, ("x",), {"rival": True}, r"no option 'rival' of a bench. Did you mean rivals\?"),
    (st.export, (None, "gguf"), {}, "`source` None: expected a text or a path"),
    (st.export, ("x", 5), {}, "`to` 5: expected a text"),
    (
        st.export,
        ("x", "gguf"),
        {"out": "x", "nonsense": 1},
        "no option 'nonsense' of an export. Known are gguf, weights",
    ),
    (st.export, ("x", "gguf"), {"out": "x", "wieghts": "f16"}, r"Did you mean weights\?"),
    (st.export, ("x", "gguf"), {"out": "x", "force": "no"}, "`force` 'no': expected True or False"),
    (st.export, ("x", "gguf"), {"out": "x", "gguf": 5}, "`gguf` 5: expected a pathlib.Path or None"),
    (st.export, ("x", "gguf"), {"out": "x", "task": "code"}, "keyed by no task"),
    (st.load_model, (5,), {}, "`name` 5: expected a text or a path"),
    (st.load_prompts, (None,), {}, "`source` None: expected a text or a path"),
    (st.load_prompts, (), {"tasks": "code"}, "`tasks` 'code': expected a list of texts"),
]


@pytest.mark.parametrize(("call", "arguments", "options", "message"), CASES)
def test_what_is_of_another_type_or_unknown_is_refused(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        call(*arguments, **options)
    assert list(tmp_path.iterdir()) == []
