"""A source of drafts that the program has never seen: registered here alone, it is in everything that drafts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

import selfspec_tune as st
from selfspec_tune.bench import run_bench
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Round
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.source import Found
from selfspec_tune.draft.sources import SOURCES
from selfspec_tune.engine import Limits, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.measure.contenders import overridden
from selfspec_tune.report.answer import footer, legend
from selfspec_tune.report.bench import print_bench
from selfspec_tune.report.search import draft_line
from selfspec_tune.requests import BenchRequest
from selfspec_tune.results import DraftSettings, ModelInfo, SkipConfig, SkipLayers
from selfspec_tune.search.stages.replay import find_along
from tests.engine_kit import STEPS, TableRunner, chain, check_record, every_policy, load, prompt_tokens
from tests.results_kit import skip_config
from tests.runs import sources_of
from tests.search_kit import Listener, prompt_file


@dataclass(frozen=True, slots=True)
class Echo:
    """The last token again, ``max_tokens`` times."""

    name: ClassVar = "echo"
    label: ClassVar = "echo"
    title: ClassVar = "echo of the last token"
    help: ClassVar = "Say the last token again."
    deed: ClassVar = "the last token is said again"
    style: ClassVar = "blue"

    max_tokens: int = 3
    draft_tokens: int = 1

    def __str__(self) -> str:
        return f"echo {self.max_tokens}" + f", {self.draft_tokens} in drafts" * bool(self.draft_tokens)

    @property
    def alone(self) -> Echo:
        return replace(self, draft_tokens=0)

    @property
    def brief(self) -> Echo:
        return Echo(1, 0)

    def begin(self, context: Sequence[int]) -> Echoing:
        return Echoing(self, context)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Echo:
        return cls(**value)


class Echoing:
    """`Echo` within a generation."""

    def __init__(self, echo: Echo, context: Sequence[int]) -> None:
        self._echo = echo
        self._tokens = list(context)

    @property
    def length(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        self._tokens += tokens

    def rewind(self, length: int) -> None:
        del self._tokens[length:]

    def find(self) -> Found:
        echo = self._echo
        return Found((self._tokens[-1],) * echo.max_tokens, 2, echo.name, echo.draft_tokens)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, Echo.name, Echo)


LOOKUP = NgramLookup(2, 2, 4, 2)
SKIP = SkipSet(4, (1,), (2,))


@pytest.mark.parametrize("sources", [(Echo(),), (Echo(), LOOKUP)], ids=["echo", "echo and lookup"])
@pytest.mark.parametrize("model_drafts", [False, True])
def test_decoding_with_it_is_lossless(tiny_llama_dir: Path, sources: tuple[Any, ...], model_drafts: bool) -> None:
    runner, limits = FastRunner(load(tiny_llama_dir)), Limits(24)
    for policy in every_policy(max_draft_tokens=4, exit_threshold=0.25):
        for prompt in (prompt_tokens(9, 1) * 2, [7]):
            plain = autoregressive(runner, prompt, limits, Sampler())
            draft = Draft(SKIP, policy, sources=sources, model_drafts=model_drafts)
            made = self_speculative(runner, prompt, limits, Sampler(), draft, STEPS)
            assert made.tokens == plain.tokens
            check_record(made, limits, draft)
            if policy.kind is not PolicyKind.COST_AWARE:
                assert "echo" in sources_of(made.rounds)
                assert "model" not in sources_of(made.rounds)  # an echo is always found


def test_rounds_say_that_it_drafted_and_that_it_was_right() -> None:
    runner = TableRunner(chain(8, 8.0, step=0))  # every token comes again
    draft = Draft(SkipSet.empty(1), sources=(Echo(),), model_drafts=False)
    made = self_speculative(runner, [5], Limits(13), Sampler(), draft)
    assert made.rounds == [Round(3, 3, "echo", 0, 0, match_length=2)] * 3


def test_passes_of_the_model_try_its_tokens() -> None:
    policy = DraftPolicy(PolicyKind.COST_AWARE, 4, credit=9.0)
    dear = replace(STEPS, verify=tuple(STEPS.decode * (1 + k) for k in range(17)), draft=STEPS.decode / 100)
    runner = TableRunner(chain(8, 8.0, step=0), chain(8, 8.0, step=0))
    draft = Draft(SkipSet.empty(1), policy, sources=(Echo(),))
    made = self_speculative(runner, [5], Limits(40), Sampler(), draft, dear)
    assert made.tokens == [5] * 40
    assert any(one.num_guesses for one in made.rounds)


def test_the_first_source_in_the_registrys_order_that_finds_anything_is_asked() -> None:
    draft = Draft(SKIP, sources=(Echo(2), LOOKUP))
    assert draft.sources == (LOOKUP, Echo(2))
    window = Window((1, 2, 3, 1, 2, 3, 3), 3, 6)
    found = [(one.source, one.num_found, one.num_right) for one in find_along(window, draft.sources)]
    assert found == [("echo", 2, 0), ("ngram", 4, 1), ("ngram", 4, 0)]


def test_a_draft_has_a_source_once_and_knows_it() -> None:
    with pytest.raises(UsageError, match="'echo' is there twice"):
        Draft(SKIP, sources=(Echo(), Echo(2)))
    del SOURCES["echo"]
    with pytest.raises(UsageError, match="'echo' is not known"):
        Draft(SKIP, sources=(Echo(),))


@pytest.fixture
def study(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A skip.json whose draft has it beside the lookup."""
    loaded = st.load_model(str(tiny_llama_dir), dtype="float32", device="cpu")
    draft = Draft(SKIP, DraftPolicy(PolicyKind.FIXED, 3), sources=(LOOKUP, Echo(2)))
    config = skip_config(
        model=ModelInfo.model_validate(loaded.describe()),
        skip=SkipLayers(attention=[1], mlp=[2]),
        draft=DraftSettings.model_validate(draft.to_dict()),
    )
    config.save(tmp_path / "skip.json")
    return tmp_path / "skip.json"


def test_it_goes_through_skip_json(study: Path) -> None:
    written = json.loads(study.read_text())["draft"]
    assert written["echo"] == {"max_tokens": 2, "draft_tokens": 1}
    assert list(written)[-3:] == ["ngram", "echo", "model_drafts"]
    config = SkipConfig.load(study)
    assert config.draft.sources == (LOOKUP, Echo(2))
    assert draft_line(config.draft, 4).endswith("n-gram 2-2, 4 tokens, 2 in drafts, echo 2, 1 in drafts")
    written["echo"] = 3
    study.write_text(json.dumps(json.loads(study.read_text()) | {"draft": written}))
    with pytest.raises(FileFormatError, match=r"draft\.echo: .*, not 3"):
        SkipConfig.load(study)
    del SOURCES["echo"]
    with pytest.raises(FileFormatError, match="'echo'"):
        SkipConfig.load(study)


def test_an_answer_says_what_it_drafted(study: Path) -> None:
    model = st.load(study, runner="fast")
    answer = model.generate("on and on", max_new_tokens=16, compare=True)
    assert answer.plain is not None
    assert answer.tokens == answer.plain.tokens
    counts = answer.by_source["echo"]
    assert f"echo {counts.accepted}/{counts.drafted}" in footer(answer, model.draft)
    assert ("echo", "blue") in legend(model.draft)


def test_an_option_of_its_name_asks_for_it() -> None:
    asked = overridden(Draft(SKIP), BenchRequest(draft_overrides=(("echo", True),)))
    assert asked == Draft(SKIP, sources=(Echo(),))
    assert overridden(asked, BenchRequest(draft_overrides=(("echo", False),))) == Draft(SKIP)


def test_it_is_a_part_of_a_bench(tiny_llama_dir: Path, tmp_path: Path) -> None:
    options = {"name": str(tiny_llama_dir), "dtype": "float32", "device": "cpu"}
    prompts = {"source": prompt_file(tmp_path / "set.jsonl", 4), "num_prompts": 2, "max_new_tokens": 8}
    drafting = {"echo": True, "ngram": True, "precision": "int8"}
    result = run_bench(
        BenchRequest(
            skip_sets=("attn 1,2",),
            model_overrides=tuple(options.items()),
            prompt_overrides=tuple({**prompts, "template": "raw"}.items()),
            draft_overrides=tuple(drafting.items()),
            reference_prompts=1,
            parts=True,
            uniform_and_random=False,
        ),
        Listener(),
    )
    methods = {method.name: method for method in result.methods}
    assert {"copies-and-lookup-and-echo", "lookup-alone", "echo-alone"} <= methods.keys()
    assert methods["echo-alone"].lossless.identical == 2
    run = next(run for run in result.runs if run.method.startswith("echo-alone:"))
    assert set(sources_of(run.candidate.rounds)) <= {"echo", "plain"}
    stream = io.StringIO()
    print_bench(Console(file=stream, width=100, color_system=None, highlight=False), result)
    shown = " ".join(stream.getvalue().split())
    assert "echo-alone: the echo alone (echo 3); threshold 6, exit 0.6." in shown
    assert "copies-and-skips: the draft without its lookup and echo;" in shown
