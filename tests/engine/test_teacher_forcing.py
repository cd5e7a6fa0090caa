"""Teacher-forced scoring against drafting one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isinf
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, autoregressive
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.serving import unserved_reason
from selfspec_tune.engine.teacher_forcing import (
    BlockScorer,
    DraftScorer,
    StandaloneReferenceScorer,
    StandaloneScorer,
    TokenExactScorer,
    Trace,
    Window,
    make_scorer,
)
from selfspec_tune.engine.teacher_forcing.reference import BLOCK
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.engine_kit import RUNNERS, draft_step, load, prompt_tokens
from tests.families import FAMILIES

SKIP_SETS = {
    "nothing": SkipSet.empty(4),
    "one attention": SkipSet(4, (2,)),
    "one MLP": SkipSet(4, (), (0,)),
    "some": SkipSet(4, (0, 3), (1,)),
    "every attention": SkipSet(4, (0, 1, 2, 3)),
    "everything": SkipSet(4, (0, 1, 2, 3), (0, 1, 2, 3)),
}


@pytest.fixture(scope="module", params=["tiny_llama_dir", "tiny_qwen2_dir"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def fast(loaded: LoadedModel) -> FastRunner:
    return FastRunner(loaded)


@pytest.fixture(scope="module")
def windows(fast: FastRunner) -> list[Window]:
    """Two greedy answers of the model, as the search calibrates on, and a text that it would not write."""
    found = []
    for seed, length, answer in ((0, 11, 13), (1, 40, 6)):
        prompt = prompt_tokens(length, seed)
        tokens = [*prompt, *autoregressive(fast, prompt, Limits(answer), Sampler()).tokens]
        found.append(Window(tuple(tokens), length - 1, len(tokens) - 1))
    foreign = prompt_tokens(10, seed=2)
    return [*found, Window(tuple(foreign), 0, 7)]


def every_scorer(loaded: LoadedModel, fast: FastRunner, windows: list[Window]) -> list[DraftScorer]:
    return [
        TokenExactScorer(fast, windows),
        BlockScorer(loaded, windows),
        StandaloneScorer(fast, windows),
        StandaloneReferenceScorer(loaded, windows),
    ]


class _Step(NamedTuple):
    matches: bool
    confidence: float
    nll: float | None


def _step(logits: torch.Tensor, target: int) -> _Step:
    """What logits [draft vocabulary] say about ``target``."""
    probabilities = logits.double().softmax(-1)
    inside = target < len(logits) and bool(logits[target] > -inf)
    nll = -float(probabilities[target].log()) if inside else None
    return _Step(int(logits.argmax()) == target, float(probabilities.max()), nll)


def _by_drafting(runner: Runner, windows: Sequence[Window], draft: Draft) -> list[list[_Step]]:
    """Per window and position: the full model reads the true prefix, the draft makes one step from it."""
    steps = []
    for window in windows:
        runner.set_draft(draft)
        runner.know(window.tokens[: window.start])
        steps.append([])
        for position in range(window.start, window.end):
            prefill(runner, window.tokens[: position + 1])
            runner.rewind(position)
            runner.know(window.tokens[position : position + 1])
            logits = draft_step(runner, window.tokens[position])
            steps[-1].append(_step(logits, window.tokens[position + 1]))
    return steps


def _assert_same(trace: Trace, steps: Sequence[Sequence[_Step]]) -> None:
    assert [list(window) for window in trace.matches] == [[step.matches for step in window] for window in steps]
    for ours, window in zip(trace.confidences, steps, strict=True):
        assert list(ours) == pytest.approx([step.confidence for step in window], rel=1e-3, abs=1e-5)
    flat = [step for window in steps for step in window]
    known = [step.nll for step in flat if step.nll is not None]
    assert trace.nll == pytest.approx(sum(known) / len(known), rel=1e-4)
    assert trace.match_rate == sum(step.matches for step in flat) / len(flat)


def test_a_window_names_the_token_after_each_position() -> None:
    window = Window((10, 11, 12, 13, 14), 1, 4)
    assert window.targets == (12, 13, 14)


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("skipped", SKIP_SETS)
def test_the_token_exact_pass_equals_drafting_from_every_true_prefix(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window], skipped: str, name: str
) -> None:
    trace = TokenExactScorer(fast, windows).trace(Draft(SKIP_SETS[skipped]))
    _assert_same(trace, _by_drafting(RUNNERS[name](loaded), windows, Draft(SKIP_SETS[skipped])))


def _after_drafting(runner: Runner, windows: Sequence[Window], draft: Draft, before: int) -> list[list[_Step]]:
    """The step at each position of a draft that began up to ``before`` positions earlier, in the window."""
    steps = []
    for window in windows:
        runner.set_draft(draft)
        runner.know(window.tokens[: window.start])
        steps.append([])
        for position in range(window.start, window.end):
            begun = max(position - before, window.start)
            prefill(runner, window.tokens[: begun + 1])
            runner.rewind(begun)
            runner.know(window.tokens[position : position + 1])
            logits = [draft_step(runner, token) for token in window.tokens[begun : position + 1]][-1]
            steps[-1].append(_step(logits, window.tokens[position + 1]))
    return steps


@pytest.mark.parametrize("skipped", SKIP_SETS)
def test_later_tokens_of_a_draft_are_scored_as_they_are_drafted(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window], skipped: str
) -> None:
    short = Window(tuple(prompt_tokens(9, seed=4)), 6, 8)  # fewer positions than tokens told apart
    texts, draft, runner = [short, *windows], Draft(SKIP_SETS[skipped]), FastRunner(loaded)  # as the reference, sooner
    trace = TokenExactScorer(fast, texts, depths=4).trace(draft)
    assert len(trace.later) == 3
    for before, place in enumerate((trace, *trace.later)):
        _assert_same(place, _after_drafting(runner, texts, draft, before))


def test_telling_tokens_of_a_draft_apart_leaves_the_first_as_it_was(fast: FastRunner, windows: list[Window]) -> None:
    draft = Draft(SKIP_SETS["some"])
    alone, apart = (TokenExactScorer(fast, windows, depths).trace(draft) for depths in (1, 3))
    assert apart.matches == alone.matches
    assert apart.nll == pytest.approx(alone.nll, rel=1e-6)


@pytest.mark.parametrize("vocabulary", [20, 60, 128])
def test_a_restricted_vocabulary_is_scored_as_it_drafts(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window], vocabulary: int
) -> None:
    draft = Draft(SKIP_SETS["some"], vocabulary=vocabulary)
    trace = TokenExactScorer(fast, windows).trace(draft)
    _assert_same(trace, _by_drafting(fast, windows, draft))
    for matches, window in zip(trace.matches, windows, strict=True):
        for match, position in zip(matches, range(window.start, window.end), strict=True):
            target = window.tokens[position + 1]
            assert not match or target < vocabulary or target in window.tokens[: position + 1]


def test_a_vocabulary_without_any_target_matches_nothing(fast: FastRunner, loaded: LoadedModel) -> None:
    windows = [Window((5, 100, 101, 102), 0, 3)]
    for scorer in every_scorer(loaded, fast, windows):
        trace = scorer.trace(Draft(SKIP_SETS["nothing"], vocabulary=50))
        assert trace.matches == ((False, False, False),)
        assert trace.match_rate == 0.0
        assert isinf(trace.nll)


def test_with_nothing_skipped_the_models_own_answers_match_throughout(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window]
) -> None:
    for scorer in every_scorer(loaded, fast, windows):
        trace = scorer.trace(Draft(SKIP_SETS["nothing"]))
        assert all(trace.matches[0])
        assert all(trace.matches[1])
        assert not all(trace.matches[2])


def test_standing_alone_with_nothing_skipped_is_the_full_model(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window]
) -> None:
    steps = []
    for window in windows:
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([window.tokens])).logits[0]
        rows = zip(logits[window.start : window.end], window.targets, strict=True)
        steps.append([_step(row, target) for row, target in rows])
    for scorer in (StandaloneScorer(fast, windows), StandaloneReferenceScorer(loaded, windows)):
        _assert_same(scorer.trace(Draft(SKIP_SETS["nothing"])), steps)


@pytest.mark.parametrize("vocabulary", [None, 60])
@pytest.mark.parametrize("skipped", ["one MLP", "some", "everything"])
def test_standing_alone_is_drafting_all_of_the_text(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window], skipped: str, vocabulary: int | None
) -> None:
    draft = Draft(SKIP_SETS[skipped], vocabulary=vocabulary)
    runner = ReferenceRunner(loaded)
    steps = []
    for window in windows:
        runner.set_draft(draft)
        prefill(runner, window.tokens[:1])
        runner.rewind(0)
        drafted = []
        for token in window.tokens[: window.end]:
            runner.know([token])
            drafted.append(draft_step(runner, token))
        rows = zip(drafted[window.start :], window.targets, strict=True)
        steps.append([_step(row, target) for row, target in rows])
    for scorer in (StandaloneScorer(fast, windows), StandaloneReferenceScorer(loaded, windows)):
        _assert_same(scorer.trace(draft), steps)


def _by_blocks(loaded: LoadedModel, windows: Sequence[Window], draft: Draft) -> list[list[_Step]]:
    """The steps of drafts that each begin after the full model's text and go on for a block of true tokens."""
    runner = ReferenceRunner(loaded)
    steps: list[list[_Step]] = []
    for window in windows:
        runner.set_draft(draft)
        runner.know(window.tokens[: window.start])
        steps.append([])
        for start in range(window.start, window.end, BLOCK):
            prefill(runner, window.tokens[: start + 1])
            runner.rewind(start)
            for position in range(start, min(start + BLOCK, window.end)):
                runner.know(window.tokens[position : position + 1])
                logits = draft_step(runner, window.tokens[position])
                steps[-1].append(_step(logits, window.tokens[position + 1]))
    return steps


@pytest.mark.parametrize("vocabulary", [None, 60])
@pytest.mark.parametrize("skipped", ["one attention", "some", "everything"])
def test_a_block_is_one_draft_of_true_tokens_after_the_full_models_text(
    loaded: LoadedModel, windows: list[Window], skipped: str, vocabulary: int | None
) -> None:
    draft = Draft(SKIP_SETS[skipped], vocabulary=vocabulary)
    _assert_same(BlockScorer(loaded, windows).trace(draft), _by_blocks(loaded, windows, draft))


def test_the_passes_differ_where_something_is_skipped(
    loaded: LoadedModel, fast: FastRunner, windows: list[Window]
) -> None:
    exact, blocks, alone = (
        scorer.trace(Draft(SKIP_SETS["some"])).nll for scorer in every_scorer(loaded, fast, windows)[:3]
    )
    assert len({round(nll, 4) for nll in (exact, blocks, alone)}) == 3


def test_drafts_that_begin_alike_share_their_beginning(fast: FastRunner, windows: list[Window]) -> None:
    scorer = TokenExactScorer(fast, windows)
    fresh = {name: TokenExactScorer(fast, windows).trace(Draft(SKIP_SETS[name])) for name in SKIP_SETS}
    computed: list[int] = []
    through = scorer.through

    def counted(stream: Stream, index: int, precision: Precision | None, experts: int | None) -> Stream:
        computed.append(index)
        return through(stream, index, precision, experts)

    scorer.through = counted  # type: ignore[method-assign]
    for name in (*SKIP_SETS, *SKIP_SETS):
        assert scorer.trace(Draft(SKIP_SETS[name])) == fresh[name]
    assert len(computed) < len(SKIP_SETS) * 8
    assert 0 < computed.count(7) <= len(SKIP_SETS)


def test_scoring_leaves_the_model_as_it_was(loaded: LoadedModel, windows: list[Window]) -> None:
    input_ids = torch.tensor([windows[0].tokens])
    with torch.inference_mode():
        before = loaded.model(input_ids=input_ids).logits
        BlockScorer(loaded, windows).trace(Draft(SKIP_SETS["everything"]))
        after = loaded.model(input_ids=input_ids).logits
    assert torch.equal(before, after)


def test_a_scorer_keeps_its_own_prefixes_while_the_runner_decodes(loaded: LoadedModel, windows: list[Window]) -> None:
    runner = FastRunner(loaded)
    scorer = TokenExactScorer(runner, windows)
    before = scorer.trace(Draft(SKIP_SETS["some"]))
    autoregressive(runner, prompt_tokens(300), Limits(3), Sampler())  # the cache grows and is overwritten
    assert scorer.trace(Draft(SKIP_SETS["some"])) == before


@pytest.mark.parametrize(
    ("runner", "standalone", "kind"),
    [
        (FastRunner, False, TokenExactScorer),
        (FastRunner, True, StandaloneScorer),
        (ReferenceRunner, False, BlockScorer),
        (ReferenceRunner, True, StandaloneReferenceScorer),
    ],
)
def test_the_scorer_fits_the_runner(
    loaded: LoadedModel, windows: list[Window], runner: Any, standalone: bool, kind: type
) -> None:
    scorer = make_scorer(runner(loaded), loaded, windows, standalone=standalone)
    assert isinstance(scorer, kind)
    assert bool(scorer.approximation) is (kind is BlockScorer)


def test_a_bfloat16_model_is_scored_in_its_own_precision(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir, "bfloat16")
    windows = [Window(tuple(prompt_tokens(12)), 4, 11)]
    trace = TokenExactScorer(FastRunner(loaded), windows).trace(Draft(SKIP_SETS["some"]))
    steps = _by_drafting(ReferenceRunner(loaded), windows, Draft(SKIP_SETS["some"]))
    assert list(trace.confidences[0]) == pytest.approx([step.confidence for step in steps[0]], abs=0.05)


# What decides which positions a position sees, and how: each kind in one row or more, the other families with --all.
SIGHTS = frozenset(
    {
        *("gemma2", "gemma3", "cwm", "mistral-window", "ministral3", "llama4_text", "smollm3-window"),
        *("gpt_neox", "cohere2", "opt", "bloom", "gpt_oss", "mixtral"),
    }
)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in SIGHTS else pytest.mark.long) for name in FAMILIES]
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    config = AutoConfig.for_model(**FAMILIES[request.param].config)
    found = load(kit.save_random(config, tmp_path_factory.mktemp("family")))
    reason = unserved_reason(found.model, FastRunner.SERVES)
    if reason is not None:
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def edges() -> list[Window]:
    """Texts about the edges of the families' windows and chunks of 8 positions: at the first, and past many."""
    tokens = tuple(prompt_tokens(40))
    return [Window(tokens[:14], 5, 12), Window(tokens, 33, 38)]


def test_every_familys_later_tokens_are_scored_as_they_are_drafted(family: LoadedModel, edges: list[Window]) -> None:
    runner, num_layers = FastRunner(family), family.num_layers
    fewer = 1 if family.experts_per_token else None
    drafts = (
        Draft(SkipSet(num_layers, (1,), (0,))),
        Draft(SkipSet(num_layers, (0,), (1, num_layers - 1)), experts=fewer),
    )
    for draft in drafts:
        trace = TokenExactScorer(runner, edges, depths=3).trace(draft)
        for before, place in enumerate((trace, *trace.later)):
            _assert_same(place, _after_drafting(runner, edges, draft, before))


def test_every_familys_drafts_that_stand_alone_are_scored_as_they_are_drafted(
    family: LoadedModel, edges: list[Window]
) -> None:
    draft = Draft(SkipSet(family.num_layers, (1,), (0,)))
    fast, theirs = StandaloneScorer(FastRunner(family), edges), StandaloneReferenceScorer(family, edges)
    ours, other = fast.trace(draft), theirs.trace(draft)
    assert ours.nll == pytest.approx(other.nll, rel=1e-4)
    for one, two in zip(ours.confidences, other.confidences, strict=True):
        assert list(one) == pytest.approx(list(two), rel=1e-3, abs=1e-5)


def test_every_familys_blocks_are_scored_as_they_are_drafted(family: LoadedModel, edges: list[Window]) -> None:
    draft = Draft(SkipSet(family.num_layers, (1,), (0,)), experts=1 if family.experts_per_token else None)
    _assert_same(BlockScorer(family, edges).trace(draft), _by_blocks(family, edges, draft))
