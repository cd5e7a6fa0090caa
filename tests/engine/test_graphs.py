"""The runner of graphs in its dry mode: buckets, static buffers, positions on the device, and what is captured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, autoregressive, choose_runner, self_speculative
from selfspec_tune.engine.layers.cache import MAX_MASKED_TOKENS
from selfspec_tune.engine.runner import DraftsAhead, Scores, Want, prefill
from selfspec_tune.engine.runners.capture import DeviceInputs, DryGraphs, Pass
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.torch_settings import describe_numerics
from selfspec_tune.errors import UnsupportedModelError, UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.plans import registry
from tests import kit
from tests.engine_kit import (
    Altered,
    TableRunner,
    certainty_by,
    chain,
    decode,
    draft_step,
    kind_of,
    load,
    policies,
    prompt_tokens,
)
from tests.runs import accepted_of, drafted_of

FIXED = DraftPolicy(PolicyKind.FIXED, 4)


class CountingGraphs(DryGraphs):
    """Counts what is run first and captured, as a GPU would."""

    def __init__(self) -> None:
        self.num_captured = 0

    def capture(self, forward: Pass) -> Pass:
        self.num_captured += 1
        return super().capture(forward)


@pytest.fixture
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    """A model of the test's own: fusing changes it."""
    return load(tiny_llama_dir)


@pytest.fixture
def pair(loaded: LoadedModel) -> tuple[GraphedRunner, FastRunner]:
    """The runner of graphs and the fast runner, over one model."""
    return GraphedRunner(loaded), FastRunner(loaded)


def _agree(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours.argmax(-1).tolist() == theirs.argmax(-1).tolist()


@pytest.mark.parametrize("length", [1, 250, 254, 255, 256, 257, 300, 510, 513])
def test_it_equals_the_fast_runner_on_either_side_of_a_bucket(
    pair: tuple[GraphedRunner, FastRunner], length: int
) -> None:
    draft = Draft(SkipSet(4, (1,), (2,)), FIXED)
    results: list[list[Tensor]] = []
    for runner in pair:
        runner.reserve(1000)
        runner.set_draft(draft)
        logits = [prefill(runner, prompt_tokens(length)), decode(runner, 7)]
        verified = runner.length
        logits += [draft_step(runner, token) for token in (8, 9, 10)]
        runner.rewind(verified)
        logits += runner.forward([8, 9, 10, 11]).logits
        runner.rewind(verified + 2)
        logits += [decode(runner, 12), decode(runner, 13)]
        results.append(logits)
    for ours, theirs in zip(*results, strict=True):
        _agree(ours, theirs)


@pytest.mark.parametrize("count", [*range(1, 18), MAX_MASKED_TOKENS, MAX_MASKED_TOKENS + 1])
def test_verifications_of_every_size_equal_the_fast_runners(pair: tuple[GraphedRunner, FastRunner], count: int) -> None:
    tokens = prompt_tokens(count, seed=1)
    results = []
    for runner in pair:
        runner.reserve(400)
        prefill(runner, prompt_tokens(250))
        results.append(runner.forward(tokens).logits)
        runner.rewind(250)
        again = runner.forward(tokens).logits
        assert torch.equal(again, results[-1])
    assert results[0].shape == (count, 128)
    _agree(*results)


def test_what_is_returned_is_not_overwritten_by_the_next_pass(loaded: LoadedModel) -> None:
    runner = GraphedRunner(loaded)
    prefill(runner, prompt_tokens(9))
    first = decode(runner, 5)
    kept = first.clone()
    decode(runner, 6)
    draft_step(runner, 7)
    assert torch.equal(first, kept)


def test_two_drafts_take_turns(pair: tuple[GraphedRunner, FastRunner]) -> None:
    drafts = [
        Draft(SkipSet(4, (1,), (2,)), FIXED),
        Draft(SkipSet(4, (0, 3), ()), FIXED, vocabulary=60),
        Draft(SkipSet(4, (), (3,)), FIXED, DraftPrecision.uniform(4, Precision.INT8)),
    ]
    for runner in pair:
        prefill(runner, prompt_tokens(20))
    for turn in range(9):
        draft, logits = drafts[turn % 3], []
        for runner in pair:
            runner.set_draft(draft)
            logits.append(draft_step(runner, turn + 3))
            logits.append(draft_step(runner, turn + 4))
            runner.rewind(20 + turn // 3)
        _agree(logits[0], logits[2])
        _agree(logits[1], logits[3])
        if turn % 3 == 2:
            _agree(*(decode(runner, turn) for runner in pair))


@pytest.mark.parametrize("start", [10, 253])
@pytest.mark.parametrize("count", [1, 3, 6, MAX_MASKED_TOKENS - 1, MAX_MASKED_TOKENS + 9])
def test_greedy_drafting_on_the_device_is_greedy_drafting(
    pair: tuple[GraphedRunner, FastRunner], count: int, start: int
) -> None:
    draft = Draft(SkipSet(4, (1,), (2,)), DraftPolicy(PolicyKind.THRESHOLD, 6))
    graphed, fast = pair
    for runner in pair:
        runner.reserve(400)
        runner.set_draft(draft)
        prefill(runner, prompt_tokens(start))
    ahead = graphed.draft_ahead(5, count)
    token, expected, sure = 5, [], []
    for _ in range(count):
        logits = draft_step(fast, token)
        token = int(logits.argmax())
        expected.append(token)
        sure.append(pytest.approx(certainty_by(logits), rel=1e-3, abs=1e-5))
    assert ahead.tokens == expected
    assert ahead.certainties == sure
    assert graphed.length == fast.length == start + count


@pytest.mark.parametrize("kind", [PolicyKind.FIXED, PolicyKind.THRESHOLD])
def test_what_a_draft_step_is_asked_for_is_not_the_policys_to_say(loaded: LoadedModel, kind: PolicyKind) -> None:
    graphed = GraphedRunner(loaded)
    graphed.reserve(100)
    graphed.set_draft(Draft(SkipSet(4, (1,), (2,)), DraftPolicy(kind, 6)))
    prefill(graphed, prompt_tokens(10))
    logits = draft_step(graphed, 5)
    for want in (Want.CERTAINTIES, Want.TOKENS):
        graphed.rewind(10)
        scores = graphed.forward([5], is_draft=True, want=want)
        assert scores.tokens == [int(logits.argmax())]
        assert scores.certainties == (
            [pytest.approx(certainty_by(logits), rel=1e-4, abs=1e-6)] if want is Want.CERTAINTIES else []
        )


def test_drafts_by_steps_and_on_the_device_may_alternate(pair: tuple[GraphedRunner, FastRunner]) -> None:
    graphed, fast = pair
    for runner in pair:
        prefill(runner, prompt_tokens(20))
    _agree(draft_step(graphed, 5), draft_step(fast, 5))
    tokens = graphed.draft_ahead(6, 2).tokens
    assert tokens[0] == int(draft_step(fast, 6).argmax())
    assert tokens[1] == int(draft_step(fast, tokens[0]).argmax())
    _agree(draft_step(graphed, 9), draft_step(fast, 9))
    graphed.rewind(21)
    fast.rewind(21)
    _agree(draft_step(graphed, 4), draft_step(fast, 4))
    graphed.rewind(20)
    fast.rewind(20)
    _agree(graphed.forward([5, 4, tokens[0]]).logits, fast.forward([5, 4, tokens[0]]).logits)


@pytest.mark.parametrize("kind", list(PolicyKind))
def test_decoding_gives_the_same_tokens_and_record_as_the_fast_runner(
    pair: tuple[GraphedRunner, FastRunner], kind: PolicyKind
) -> None:
    policy = next((p for p in policies(5, 0.3) if p.kind is kind), FIXED)
    for seed, eos in ((0, frozenset[int]()), (1, frozenset(range(3, 12)))):
        prompt, limits, greedy = prompt_tokens(240, seed=seed), Limits(40, eos), Sampler()
        plain = [autoregressive(runner, prompt, limits, greedy) for runner in pair]
        draft = Draft(SkipSet(4, (), (2,)), policy)
        made = [self_speculative(runner, prompt, limits, greedy, draft) for runner in pair]
        assert made[0].tokens == made[1].tokens == plain[0].tokens == plain[1].tokens
        assert drafted_of(made[0].rounds) == drafted_of(made[1].rounds)
        assert accepted_of(made[0].rounds) == accepted_of(made[1].rounds)
        assert made[0].stop_reason == plain[0].stop_reason


def test_a_sampled_draft_feeds_back_what_was_drawn(pair: tuple[GraphedRunner, FastRunner]) -> None:
    draft = Draft(SkipSet(4, (1,), ()), FIXED)
    answers = []
    for runner in pair:
        sampler = Sampler(temperature=0.8, top_k=20, seed=3)
        answers.append(self_speculative(runner, prompt_tokens(20), Limits(40), sampler, draft).tokens)
    assert answers[0] == answers[1]


# -- what is captured --------------------------------------------------------------------------------------------


def test_reserving_captures_all_that_decoding_replays(loaded: LoadedModel) -> None:
    backend = CountingGraphs()
    runner = GraphedRunner(loaded, backend)
    draft = Draft(SkipSet(4, (1,), (2,)), FIXED)
    runner.set_draft(draft)
    runner.reserve(300)
    # Buckets of 256 and 512, each with verifications of 1 to 5 tokens and a draft step.
    assert backend.num_captured == runner.num_graphs == 12
    self_speculative(runner, prompt_tokens(240), Limits(60), Sampler(), draft)
    autoregressive(runner, prompt_tokens(240), Limits(60), Sampler())
    assert backend.num_captured == 12
    runner.set_draft(Draft(SkipSet(4, (2,), (2,)), FIXED))
    runner.reserve(300)
    assert backend.num_captured == 14  # a new draft has a graph per bucket


def test_capturing_ahead_leaves_the_cache_alone(loaded: LoadedModel) -> None:
    runner, fast = GraphedRunner(loaded), FastRunner(loaded)
    runner.reserve(256)
    for length, most in ((100, 9), (256, 10)):  # behind what is cached, and where it ends
        for each in (runner, fast):
            prefill(each, prompt_tokens(length - 1))
            decode(each, 3)
        held = runner.num_graphs
        runner.set_draft(Draft(SkipSet(4, (3,), (3,)), DraftPolicy(PolicyKind.FIXED, most)))
        runner.reserve(200)
        assert runner.num_graphs > held
        assert runner.length == length
        for ours, theirs in zip(runner.keys_and_values(2), fast.keys_and_values(2), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_larger_cache_drops_the_graphs_of_the_smaller(loaded: LoadedModel) -> None:
    runner = GraphedRunner(loaded)
    runner.reserve(100)
    assert (runner.capacity, runner.buckets(1000)) == (256, [256])
    before = prefill(runner, prompt_tokens(60))
    first = decode(runner, 5)
    runner.reserve(600)
    assert (runner.capacity, runner.buckets(257), runner.buckets(600)) == (1024, [256, 512], [256, 512, 1024])
    _agree(prefill(runner, prompt_tokens(60)), before)
    _agree(decode(runner, 5), first)


def test_graphs_of_only_the_latest_drafts_are_kept(loaded: LoadedModel) -> None:
    runner = GraphedRunner(loaded)
    runner.reserve(100)
    held = set()
    for layer in range(4):
        for other in range(4):
            runner.set_draft(Draft(SkipSet(4, (layer,), (other,)), FIXED))
            prefill(runner, prompt_tokens(5))
            draft_step(runner, 4)
            held.add(runner.num_graphs)
    assert max(held) == 7 + 8  # the default policy's verifications of 1 to 7 tokens, and eight drafts


def test_a_context_that_is_no_power_of_two_is_the_last_bucket(tmp_path: Path) -> None:
    loaded = load(kit.tiny_llama(tmp_path, layers=2, context=300))
    runner, reference = GraphedRunner(loaded), ReferenceRunner(loaded)
    runner.reserve(290)
    assert (runner.capacity, runner.buckets(290)) == (300, [256, 300])
    for each in (runner, reference):
        prefill(each, prompt_tokens(295))
    _agree(runner.forward([4, 5, 6, 7, 8]).logits, reference.forward([4, 5, 6, 7, 8]).logits)


@pytest.mark.parametrize("make", [FastRunner, GraphedRunner])
def test_a_pass_past_the_cache_is_refused(loaded: LoadedModel, make: type[FastRunner]) -> None:
    runner = make(loaded)
    prefill(runner, prompt_tokens(255))
    decode(runner, 4)
    for step in (lambda: decode(runner, 5), lambda: draft_step(runner, 5), lambda: runner.forward([5, 6])):
        with pytest.raises(UsageError, match=r"ends at position 25[78], and the cache holds 256.*runner\.reserve"):
            step()
    assert runner.length == 256


# -- the static input --------------------------------------------------------------------------------------------


def _sent(inputs: DeviceInputs) -> list[int]:
    return [int(inputs.start), int(inputs.slot), *inputs.tokens.tolist()]


def test_the_input_is_sent_only_where_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, sent = DeviceInputs(6, torch.device("cpu")), list[list[int]]()
    send = inputs._ring.send
    monkeypatch.setattr(inputs._ring, "send", lambda values, target: (sent.append(list(values)), send(values, target)))
    inputs.expect_draft(10, 7, 3)
    assert sent.pop() == [10, 0, 7]
    inputs.slot.add_(3)
    inputs.tokens[1:4] = torch.tensor([4, 5, 6])
    inputs.drafted([4, 5, 6], 3)
    inputs.expect_draft(13, 6)  # goes on where it was
    inputs.expect_pass(10, [7, 4, 5, 6])  # the verification's tokens are all there
    assert sent == []
    inputs.expect_pass(10, [7, 4, 9])
    assert sent.pop() == [10, 0, 7, 4, 9]
    inputs.expect_draft(10, 7)  # after a pass, a draft begins anew
    assert sent.pop() == [10, 0, 7]
    inputs.slot.add_(1)
    inputs.drafted()
    inputs.expect_draft(11, 8)  # not known to be what the device chose
    assert sent.pop() == [10, 1, 7, 8]
    inputs.expect_draft(11, 8, 5)  # more steps than there are slots left
    assert _sent(inputs)[:3] == [11, 0, 8]


def test_many_copies_in_a_row_all_arrive() -> None:
    inputs = DeviceInputs(3, torch.device("cpu"))
    for start in range(30):
        inputs.expect_pass(start, [start, start + 1])
        assert _sent(inputs)[:4] == [start, 0, start, start + 1]


# -- the choice --------------------------------------------------------------------------------------------------


def test_it_is_chosen_where_asked_and_says_that_it_is_dry(loaded: LoadedModel) -> None:
    notices: list[str] = []
    runner = choose_runner(loaded, "graphs", notices.append)
    assert isinstance(runner, GraphedRunner)
    assert len(notices) == 1
    assert "runs dry on cpu" in notices[0]
    assert not isinstance(choose_runner(loaded, "auto", notices.append), GraphedRunner)
    assert len(notices) == 1


@pytest.mark.parametrize("checkpoint", ["tiny_llama_dir", "tiny_qwen2_dir"])
def test_it_is_chosen_in_bfloat16_too(checkpoint: str, request: pytest.FixtureRequest) -> None:
    loaded = load(request.getfixturevalue(checkpoint), "bfloat16")
    assert isinstance(choose_runner(loaded, "graphs", lambda text: None), GraphedRunner)


def test_other_architectures_are_refused_by_name(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.FAMILIES, "llama")
    with pytest.raises(UnsupportedModelError, match="`runner` graphs cannot serve"):
        choose_runner(loaded, "graphs", lambda text: None)


class _Uncapturable(GraphedRunner):
    def forward(self, tokens: Sequence[int], **how: Any) -> Scores:
        if kind_of(tokens, **how) == "step":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return super().forward(tokens, **how)


class _Wrong(Altered, GraphedRunner):
    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        return logits + 1.0 * (kind == "step")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(_Uncapturable, r"cannot be captured \(operation not permitted"), (_Wrong, "differ from the reference")],
)
def test_one_that_fails_or_differs_is_not_taken(
    loaded: LoadedModel, wrong: type[GraphedRunner], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfspec_tune.engine.choice.GraphedRunner", wrong)
    with pytest.raises(UnsupportedModelError, match=reason):
        choose_runner(loaded, "graphs", lambda text: None)


def test_a_runner_without_the_method_drafts_by_steps() -> None:
    runner: Runner = TableRunner(chain(9, 4.0))
    assert not isinstance(runner, DraftsAhead)
    made = self_speculative(runner, [1], Limits(6), Sampler(), Draft(SkipSet.empty(1), FIXED))
    assert made.tokens == [2, 3, 4, 5, 6, 7]


def test_float32_is_multiplied_in_float32(loaded: LoadedModel) -> None:
    torch.set_float32_matmul_precision("high")
    choose_runner(loaded, "fast")
    assert describe_numerics() == {"float32_matmul_precision": "highest", "tf32": False}
