"""Ids of the context that drafts over a part of the vocabulary choose from too: which, and what every runner says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf
from pathlib import Path

import pytest
import torch

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, known_ids, self_speculative
from selfspec_tune.engine.known_ids import KnownIds
from selfspec_tune.engine.runner import Want, prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.penalty import penalised
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.models import LoadedModel
from tests.engine_kit import RUNNERS, certainty_by, llama, load, needs_compiler, prompt_tokens, threads_of_torch

VOCABULARY, FIRST = 700, 40  # several blocks of the native head
SKIP_SET = SkipSet(3, (1,), (2,))
TEXT = [5, 699, 60, 39, 40, 60, 200]
OTHERS = [40, 60, 200, 699]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedModel]:
    """One with biases on its output head, in both types; read only."""

    @cache
    def made(dtype: str) -> LoadedModel:
        loaded = load(llama(tmp_path_factory.mktemp("model"), vocab_size=VOCABULARY), dtype)
        head = loaded.model.get_output_embeddings()
        generator = torch.Generator().manual_seed(1)
        head.bias = torch.nn.Parameter(torch.randn(VOCABULARY, generator=generator).to(loaded.dtype), False)
        return loaded

    return made


@pytest.fixture(params=["float32", "bfloat16"])
def loaded(models: Callable[[str], LoadedModel], request: pytest.FixtureRequest) -> LoadedModel:
    return models(request.param)


def _known(draft: Draft) -> KnownIds:
    return KnownIds(draft, VOCABULARY, torch.device("cpu"))


def test_a_draft_knows_its_share_and_the_latest_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_ids, "MOST_OTHERS", 3)
    known = _known(Draft(SKIP_SET, vocabulary=FIRST))
    assert (known.first, known.others.tolist(), known.size) == (FIRST, [], FIRST)
    assert not known.add([0, 39])
    assert known.add([60, 50, 3, 50])
    assert (known.others.tolist(), known.size) == ([50, 60], 61)
    assert not known.add([60])
    assert known.add([90, 41])  # 50 is the one that stands furthest back
    assert (known.others.tolist(), known.size) == ([41, 60, 90], 91)
    assert known.add([50])
    assert known.others.tolist() == [41, 50, 90]
    assert not known.add([VOCABULARY])  # a text's, for which the head has no row
    assert known.ids is not None
    assert known.ids.tolist() == [*range(FIRST), 41, 50, 90]


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY, 2 * VOCABULARY])
def test_a_draft_over_all_of_the_vocabulary_knows_nothing_past_it(vocabulary: int | None) -> None:
    known = _known(Draft(SKIP_SET, vocabulary=vocabulary))
    assert not known.add([0, VOCABULARY - 1])
    assert known.size == known.first == VOCABULARY
    assert known.ids is None


def _drafting(runner: Runner, draft: Draft, text: list[int] = TEXT) -> Runner:
    """The runner after a prompt, about to draft what follows ``text``."""
    prefill(runner, prompt_tokens(9))
    runner.set_draft(draft)
    runner.know(text[:3])
    runner.know(text[3:])
    return runner


@pytest.mark.parametrize("name", RUNNERS)
def test_a_draft_has_the_logits_of_its_share_and_of_the_texts_ids(loaded: LoadedModel, name: str) -> None:
    runner = _drafting(RUNNERS[name](loaded), Draft(SKIP_SET))
    tokens = [7, 699, 60]
    whole = runner.forward(tokens, is_draft=True).logits
    assert whole.shape == (3, VOCABULARY)
    _drafting(runner, Draft(SKIP_SET, vocabulary=FIRST))
    part = runner.forward(tokens, is_draft=True).logits
    expected = torch.full_like(whole, -inf)
    kept = [*range(FIRST), *OTHERS]
    expected[:, kept] = whole[:, kept]
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5 if loaded.dtype == torch.float32 else 0.05)
    for want in (Want.TOKENS, Want.CERTAINTIES):
        runner.rewind(9)
        scores = runner.forward(tokens, is_draft=True, want=want)
        assert scores.tokens == part.argmax(-1).tolist()
        certainties = [pytest.approx(certainty_by(row), rel=1e-4, abs=1e-5) for row in part]
        assert scores.certainties == (certainties if want is not Want.TOKENS else [])
    runner.rewind(9)
    steps = [runner.forward([token], is_draft=True, want=Want.CERTAINTIES) for token in tokens]
    assert [step.tokens[0] for step in steps] == part.argmax(-1).tolist()
    assert runner.forward([3]).logits.isfinite().all()  # the full model knows everything


@pytest.mark.parametrize("name", RUNNERS)
def test_another_draft_forgets_the_text(loaded: LoadedModel, name: str) -> None:
    runner, draft = RUNNERS[name](loaded), Draft(SKIP_SET, vocabulary=FIRST)
    _drafting(runner, draft)
    assert runner.forward([7], is_draft=True).logits.shape == (1, VOCABULARY)
    runner.set_draft(draft)
    assert runner.forward([7], is_draft=True).logits.shape == (1, FIRST)
    runner.know([50])
    logits = runner.forward([7], is_draft=True).logits[0]
    assert logits.shape == (51,)
    assert logits.isfinite().nonzero()[:, 0].tolist() == [*range(FIRST), 50]


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_the_texts_ids_have_the_models_own_rows_beside_a_coarser_share(
    models: Callable[[str], LoadedModel], name: str, precision: Precision
) -> None:
    runner, own = RUNNERS[name](models("bfloat16")), Draft(SKIP_SET)
    whole = _drafting(runner, own).forward([7, 8], is_draft=True).logits
    coarse = Draft(SKIP_SET, precision=DraftPrecision(head=precision), vocabulary=FIRST)
    part = _drafting(runner, coarse).forward([7, 8], is_draft=True).logits
    torch.testing.assert_close(part[:, OTHERS], whole[:, OTHERS], rtol=0, atol=0.05)
    assert not torch.equal(part[:, :FIRST], whole[:, :FIRST])


@needs_compiler
def test_native_bits_depend_neither_on_tokens_nor_on_threads(loaded: LoadedModel) -> None:
    found = []
    text = [*range(60, 60 + 5 * 256, 2)][: (VOCABULARY - 60) // 2]  # more than a block of others
    tokens = prompt_tokens(40, seed=3)
    for count in (1, 2, 3):
        with threads_of_torch(count):
            runner = RUNNERS["native"](loaded)
            runner.reserve(100)
        _drafting(runner, Draft(SKIP_SET, vocabulary=FIRST), text)
        for size in (1, 3, 40):
            for want in (Want.LOGITS, Want.CERTAINTIES):
                runner.rewind(9)
                chunks = [tokens[at : at + size] for at in range(0, 40, size)]
                scores = [runner.forward(chunk, is_draft=True, want=want) for chunk in chunks]
                if want is Want.LOGITS:
                    logits = torch.cat([each.logits for each in scores])
                else:
                    best = [(t, c) for each in scores for t, c in zip(each.tokens, each.certainties, strict=True)]
            assert [token for token, _ in best] == logits.argmax(-1).tolist()
            found.append((logits, best))
    for logits, best in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert best == found[0][1]
    assert any(token >= 60 for token, _ in found[0][1])


@pytest.mark.parametrize("name", RUNNERS)
def test_of_equal_logits_the_lowest_id_wins(tmp_path: Path, name: str) -> None:
    loaded = load(llama(tmp_path, vocab_size=600), "bfloat16")
    head = loaded.model.get_output_embeddings().weight.data
    head[300:] = head[:300]  # every logit comes twice
    runner = _drafting(RUNNERS[name](loaded), Draft(SKIP_SET, vocabulary=20), list(reversed(range(600))))
    assert max(runner.forward(prompt_tokens(30), is_draft=True, want=Want.TOKENS).tokens) < 300


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_what_wraps_a_runner_hands_the_text_on(
    models: Callable[[str], LoadedModel], alone: bool, penalty: float
) -> None:
    inner: Runner = FastRunner(models("float32"))
    runner = penalised(StandaloneRunner.of(inner, models("float32")) if alone else inner, penalty)
    logits = _drafting(runner, Draft(SKIP_SET, vocabulary=FIRST)).forward([7], is_draft=True).logits[0]
    assert logits.isfinite().nonzero()[:, 0].tolist() == [*range(FIRST), *OTHERS]
    assert runner.draft_ids is not None
    assert runner.draft_ids.tolist() == [*range(FIRST), *OTHERS]


POLICIES = [DraftPolicy(PolicyKind.FIXED, 4), DraftPolicy(PolicyKind.THRESHOLD, 4, 0.02)]


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_an_answer_after_another_is_drafted_as_by_a_fresh_runner(
    models: Callable[[str], LoadedModel], name: str, policy: DraftPolicy
) -> None:
    loaded, draft = models("float32"), Draft(SkipSet(3, (), (2,)), policy, vocabulary=FIRST)
    prompt, limits = prompt_tokens(9, vocabulary=VOCABULARY), Limits(24)
    runner = RUNNERS[name](loaded)
    self_speculative(runner, prompt_tokens(30, seed=4, vocabulary=VOCABULARY), limits, Sampler(), draft)
    again = self_speculative(runner, prompt, limits, Sampler(), draft)
    fresh = self_speculative(RUNNERS[name](loaded), prompt, limits, Sampler(), draft)
    assert (again.tokens, again.rounds) == (fresh.tokens, fresh.rounds)


def test_steps_on_the_device_choose_from_the_texts_ids(models: Callable[[str], LoadedModel]) -> None:
    draft = Draft(SKIP_SET, POLICIES[0], vocabulary=FIRST)
    graphed, fast = GraphedRunner(models("float32")), FastRunner(models("float32"))
    text = list(range(0, VOCABULARY, 3))
    for runner in (graphed, fast):
        runner.reserve(400)
        _drafting(runner, draft, text)
    expected = [7]
    for _ in range(12):
        expected += fast.forward(expected[-1:], is_draft=True, want=Want.TOKENS).tokens
    assert graphed.draft_ahead(7, 12).tokens == expected[1:]
    assert max(expected) >= FIRST
    for runner in (graphed, fast):  # what was captured reads what has come since
        runner.rewind(9)
        runner.know(range(1, VOCABULARY, 3))
    expected = [7]
    for _ in range(12):
        expected += fast.forward(expected[-1:], is_draft=True, want=Want.TOKENS).tokens
    assert graphed.draft_ahead(7, 12).tokens == expected[1:]
    assert any(token >= FIRST and token % 3 == 1 for token in expected)
