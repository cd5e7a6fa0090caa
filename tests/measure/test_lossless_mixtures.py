"""Mixtures of experts below float32, where rounding chooses experts: what is a tie then, and what a fault."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from selfspec_tune.draft import Draft, DraftPolicy, Round
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.layers.router import Router
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.measure.arms import autoregressive_arm, generate_arm, self_speculative_arm
from selfspec_tune.measure.lossless import LosslessCheck, make_check
from selfspec_tune.measure.pairs import blocks, measure_block
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt
from selfspec_tune.requests import PromptOptions
from tests import kit
from tests.engine_kit import Altered, Limits, TableRunner, chain, load, needs_compiler, prompt_tokens
from tests.families import FAMILIES

NEW_TOKENS = 16


def _item(tokens: Sequence[int], name: str = "p") -> WorkItem:
    return WorkItem(name, Prompt(name, "code", name), tuple(tokens), Limits(NEW_TOKENS, frozenset()))


class _Rerouted(Altered, TableRunner):
    """After token 3 it wants 4; where it reads 1, 2 and 3 at once it wants 6, whose logit is else lower by .5."""

    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        if list(tokens) == [1, 2, 3]:
            logits[-1, 6] += 0.6
        return logits


@pytest.mark.parametrize(
    ("rounds", "token", "is_mixture", "status"),
    [
        ([Round(2, 2)], 6, True, "numerical_tie"),
        ([Round(2, 2)], 6, False, "mismatch"),  # no rounding moves so much there
        ([Round(2, 2)], 7, True, "mismatch"),
        ([Round(1, 1), Round(2, 0)], 6, True, "mismatch"),  # read in other pieces, it is not chosen
        ([], 6, True, "mismatch"),
    ],
)
def test_a_drafted_answer_of_a_mixture_ties_where_its_verification_gives_it_again(
    rounds: list[Round], token: int, is_mixture: bool, status: str
) -> None:
    table = chain(8, 9.0)
    table[:, 3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 8.95, 8.5, 8.5])
    check = LosslessCheck(_Rerouted(table), 1.0, dtype=torch.bfloat16, is_mixture=is_mixture)
    assert check(_item([0]), [1, 2, 3, 4, 5], [1, 2, 3, token, 7], rounds=rounds).status == status


def test_nothing_beyond_a_step_ties_where_a_verification_gives_the_bits_of_steps() -> None:
    table = chain(8, 9.0)
    table[:, 3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 8.95, 8.5, 8.5])
    check = LosslessCheck(TableRunner(table), 0.0, dtype=torch.bfloat16, is_mixture=True)
    assert check(_item([0]), [1, 2, 3, 4, 5], [1, 2, 3, 5, 7], rounds=[Round(2, 2)]).status == "mismatch"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    config = AutoConfig.for_model(**FAMILIES["qwen3_moe"].config)
    return load(kit.save_random(config, tmp_path_factory.mktemp("mixture")), "bfloat16")


def _statuses(loaded: LoadedModel, runner: FastRunner) -> tuple[set[str], set[str]]:
    """Of drafted answers and of transformers', each against our plain decoding."""
    workload = Workload(loaded, runner, PromptOptions(max_new_tokens=NEW_TOKENS))
    items = [_item(prompt_tokens(40, seed), str(seed)) for seed in range(3)]
    draft = Draft(SkipSet(runner.num_layers, (1,)), DraftPolicy(max_draft_tokens=4))
    arms = [self_speculative_arm(workload, draft), generate_arm(workload)]
    check = make_check(workload, items)
    runs = [measure_block(workload, autoregressive_arm(workload), arms, block, check) for block in blocks(items)]
    drafted, theirs = ({run.lossless for run in runs_} for runs_ in zip(*runs, strict=True))
    return drafted, theirs


def test_a_sound_mixture_is_not_held_lossy(loaded: LoadedModel) -> None:
    drafted, theirs = _statuses(loaded, FastRunner(loaded))
    assert "mismatch" not in drafted | theirs


@needs_compiler
def test_the_native_kernels_draft_a_mixture_bit_for_bit(loaded: LoadedModel) -> None:
    drafted, _ = _statuses(loaded, NativeRunner(loaded))
    assert drafted == {"identical"}


def test_a_mixture_whose_experts_weigh_too_much_is_not_a_tie(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that computes something else has large differences everywhere, and none of them excuses another."""

    def weighs_more(self: Router, hidden: Tensor, chosen: int, call=Router.__call__) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        experts, weights = call(self, hidden, chosen)
        return experts, weights * 1.3

    monkeypatch.setattr(Router, "__call__", weighs_more)
    _, theirs = _statuses(loaded, FastRunner(loaded))
    assert "mismatch" in theirs
