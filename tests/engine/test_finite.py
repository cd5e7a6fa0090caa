"""A model whose numbers are none is refused by name, and ends a run that meets them later: it would look fast."""

from __future__ import annotations

import json
import shutil
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from selfspec_tune.draft import Draft, DraftPolicy
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive, choose_runner, self_speculative
from selfspec_tune.engine.drafting import Drafter
from selfspec_tune.engine.model_source import Drafted
from selfspec_tune.engine.runner import Want, prefill
from selfspec_tune.errors import FileFormatError, NonFiniteError, UsageError
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.models.weights import is_finite
from tests.engine_kit import RUNNERS, STEPS, TableRunner, chain, every_policy, load, prompt_tokens
from tests.search_kit import prompt_file

LAST = "model.layers.3.mlp.down_proj.weight"
SAMPLERS = [Sampler(), Sampler(1.0, seed=1)]


def spoilt(directory: Path, out: Path, name: str, value: float) -> Path:
    """The checkpoint with one number of one tensor replaced."""
    loaded = load(directory)
    with torch.no_grad():
        loaded.model.get_parameter(name).view(-1)[-1] = value
    loaded.model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    return out


def bench(model: Path, source: str, *more: str) -> Result:
    options = ("--skip-set", "mlp 1", "--num-prompts", "4", "--max-new-tokens", "8", "--device", "cpu", *more)
    return CliRunner().invoke(app, ["bench", "--model", str(model), "--prompts", source, *options])


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model.norm.weight", nan, "NaN"),
        ("model.embed_tokens.weight", inf, "infinite"),
        ("model.layers.2.self_attn.k_proj.weight", -inf, "infinite"),
        (LAST, nan, "NaN"),
    ],
)
def test_a_weight_that_is_no_number_is_refused_by_its_name(
    name: str, value: float, kind: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError, match=f"The tensor {name} of .* has values that are {kind}"):
        load(spoilt(tiny_llama_dir, tmp_path, name, value))


def test_a_weight_beyond_float16_is_refused_with_what_holds_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = spoilt(tiny_llama_dir, tmp_path, "model.norm.weight", 70000.0)
    with pytest.raises(UsageError, match=r"model.norm.weight .* float16, which ends at 65504. Use `dtype` bfloat16"):
        load(model, "float16")
    for dtype in ("bfloat16", "float32"):
        assert load(model, dtype).model.get_parameter("model.norm.weight")[-1] > 65504


def test_types_that_are_no_numbers_by_themselves_are_not_judged() -> None:
    assert is_finite(torch.full((2, 2), 255, dtype=torch.uint8))
    assert is_finite(torch.empty(0))
    assert is_finite(torch.zeros(3, device="meta"))
    assert not is_finite(torch.tensor([1.0, nan], dtype=torch.bfloat16))


@pytest.mark.parametrize("runner", ["auto", "reference", "fast"])
def test_values_that_overflow_on_the_way_are_found_before_anything_is_measured(
    runner: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    large = spoilt(tiny_llama_dir, tmp_path, LAST, 6e4)
    loaded = load(large, "float16")
    with torch.no_grad():
        loaded.model.get_parameter("lm_head.weight").fill_(6e4)
    with pytest.raises(NonFiniteError, match=r"in float16: the logits at position \d+ are no finite numbers.*`dtype`"):
        choose_runner(loaded, runner)


SATURATED = 3e38  # what its norm makes 0 of, and of that every logit


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_ends_a_generation_whose_logits_are_all_equal(
    name: str, sampler: Sampler, tiny_llama_dir: Path
) -> None:
    loaded, prompt = load(tiny_llama_dir), prompt_tokens(9)
    with torch.no_grad():
        loaded.model.get_parameter("model.embed_tokens.weight")[prompt[-1]] = SATURATED
    runner = RUNNERS[name](loaded)
    skipping = Draft(SkipSet(4, (1,), (2,)))
    for decode in (
        lambda text: autoregressive(runner, text, Limits(4), sampler),
        lambda text: self_speculative(runner, text, Limits(4), sampler, skipping),
    ):
        with pytest.raises(NonFiniteError, match="every token has the same logit at position 9"):
            decode(prompt)
        assert decode([5, 6, 7]).tokens


@pytest.fixture
def broken(tiny_llama_dir: Path) -> LoadedModel:
    """A model that breaks after it was loaded: every logit is NaN."""
    loaded = load(tiny_llama_dir)
    with torch.no_grad():
        loaded.model.get_parameter("model.norm.weight")[0] = nan
    return loaded


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_ends_at_the_first_logits_that_are_no_numbers(
    name: str, sampler: Sampler, broken: LoadedModel
) -> None:
    with pytest.raises(NonFiniteError, match="in float32: the logits at position 9 are"):
        autoregressive(RUNNERS[name](broken), prompt_tokens(9), Limits(4), sampler)


@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_notices_in_its_own_steps(name: str, broken: LoadedModel) -> None:
    runner = RUNNERS[name](broken)
    runner.reserve(64)
    runner.set_draft(Draft(SkipSet.empty(4)))
    prefill(runner, prompt_tokens(9))
    for want in (Want.TOKENS, Want.CERTAINTIES):
        for count, last_only in ((1, False), (40, False), (1, True)):
            with pytest.raises(NonFiniteError, match="at position 10 are"):
                runner.forward([5] * count, want=want, last_only=last_only)
            runner.rewind(9)


@pytest.mark.parametrize("name", RUNNERS)
def test_what_was_no_number_is_nothing_to_the_next_generation(name: str, tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[7] = nan  # type: ignore[index]
    runner = RUNNERS[name](loaded)
    tokens = autoregressive(runner, [4, 5], Limits(3), Sampler()).tokens
    with pytest.raises(NonFiniteError, match="at position 4 are"):
        autoregressive(runner, [4, 5, 6, 7], Limits(3), Sampler())
    assert autoregressive(runner, [4, 5], Limits(3), Sampler()).tokens == tokens


def spoilt_after(token: int, value: float) -> Tensor:
    """A chain of tokens whose logits after ``token`` hold ``value``."""
    table = chain(12, 5.0)
    table[:, token, 3] = value
    return table


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [nan, inf])
def test_a_generation_ends_where_one_position_alone_is_no_number(value: float, sampler: Sampler) -> None:
    table = spoilt_after(7, value)
    limits = Limits(30)
    with pytest.raises(NonFiniteError, match=r"table: the logits at position \d+ are no finite numbers"):
        autoregressive(TableRunner(table), [0, 1], limits, sampler)
    for policy in every_policy(4, 0.5):
        with pytest.raises(NonFiniteError, match="no finite numbers"):
            self_speculative(TableRunner(table, chain(12, 5.0)), [0, 1], limits, sampler, draft(policy), STEPS)


def test_the_position_is_named(tiny_llama_dir: Path) -> None:
    with pytest.raises(NonFiniteError, match="at position 8 are"):  # after tokens 0 to 7
        autoregressive(TableRunner(spoilt_after(7, nan)), [0, 1], Limits(30), Sampler())


def test_a_token_that_the_model_rules_out_is_no_fault() -> None:
    table = chain(12, 5.0)
    table[:, :, 11] = -inf
    assert autoregressive(TableRunner(table), [0, 1], Limits(5), Sampler()).tokens == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [nan, inf])
def test_a_draft_that_overflows_costs_time_and_no_token(value: float, sampler: Sampler) -> None:
    limits = Limits(30)
    target = chain(12, 50.0)  # sampled too, one token has all of the probability
    plain = autoregressive(TableRunner(target), [0, 1], limits, sampler).tokens
    for policy in every_policy(4, 0.5):
        runner = TableRunner(target, spoilt_after(7, value))
        assert self_speculative(runner, [0, 1], limits, sampler, draft(policy), STEPS).tokens == plain


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [nan, inf])
def test_what_comes_after_a_rejected_draft_may_be_no_number(value: float, sampler: Sampler) -> None:
    limits, target = Limits(30), chain(12, 50.0)
    plain = autoregressive(TableRunner(target), [0, 1], limits, sampler).tokens
    wrong = chain(12, 50.0, step=2)
    for token in range(12):
        target[token, (token + 2) % 12, 3] = value  # after what only the draft writes
    for policy in every_policy(4, 0.5):
        runner = TableRunner(target, wrong)
        assert self_speculative(runner, [0, 1], limits, sampler, draft(policy), STEPS).tokens == plain
        assert runner.verified


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_goes_on_after_a_draft_that_leads_to_no_numbers(
    name: str, sampler: Sampler, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values are none either, and a mask may not hide them."""
    loaded = load(tiny_llama_dir)
    expected = autoregressive(RUNNERS[name](loaded), [4, 5, 6], Limits(8), Sampler()).tokens
    spoilt = next(token for token in range(10, 120) if token not in expected)
    embedding = loaded.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[spoilt] = nan  # type: ignore[index]
    monkeypatch.setattr(Drafter, "draft", lambda self, token, room: Drafted("lookup", [spoilt] * min(2, room)))
    sampler.restart(1)
    found = self_speculative(RUNNERS[name](loaded), [4, 5, 6], Limits(8), sampler, draft(DraftPolicy()))
    assert len(found.tokens) == 8
    if sampler.greedy:
        assert found.tokens == expected
    with torch.no_grad():
        embedding.weight[found.tokens[0]] = nan  # type: ignore[index]
    sampler.restart(1)
    with pytest.raises(NonFiniteError, match="at position 4 are"):
        self_speculative(RUNNERS[name](loaded), [4, 5, 6], Limits(8), sampler, draft(DraftPolicy()))


def draft(policy: DraftPolicy) -> Draft:
    return Draft(SkipSet.empty(1), policy)


@pytest.mark.parametrize("epsilon", [inf, nan])
def test_a_configuration_that_leaves_nothing_to_compute_is_refused(
    epsilon: float, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": epsilon}))
    with pytest.raises(NonFiniteError, match=r"every token has the same logit|are no finite numbers"):
        choose_runner(load(model))


def test_nothing_is_published_of_a_broken_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    source = prompt_file(tmp_path / "p.jsonl")
    model = spoilt(tiny_llama_dir, tmp_path / "model", "model.norm.weight", nan)
    for more in ((), ("--ngram",), ("--runner", "reference"), ("--dtype", "bfloat16")):
        run = bench(model, source, *more, "--out", str(tmp_path / "bench.json"))
        assert run.exit_code == 2, run.output
        assert "model.norm.weight" in run.stderr
        assert "Traceback" not in run.output
        assert "×" not in run.output
    assert not (tmp_path / "bench.json").exists()


def test_a_run_that_meets_them_later_publishes_nothing(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(*args: Any, **options: Any) -> LoadedModel:
        loaded = load_model(*args, **options)
        embedding = loaded.model.get_input_embeddings()

        def forward(_: object, inputs: Any, output: Tensor) -> Tensor:
            return output * nan if inputs[0].shape[-1] > 20 else output  # prompts, not the few tokens looked at first

        embedding.register_forward_hook(forward)
        return loaded

    monkeypatch.setattr("selfspec_tune.measure.workload.load_model", breaking)
    source = prompt_file(tmp_path / "p.jsonl")
    run = bench(
        tiny_llama_dir, source, "--runner", "reference", "--dtype", "float32", "--out", str(tmp_path / "b.json")
    )
    assert run.exit_code == 1, run.output
    assert f"error: {tiny_llama_dir} in float32: the logits at position" in run.stderr
    assert not (tmp_path / "b.json").exists()


def test_a_search_of_a_broken_model_ends_before_its_first_trial(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = spoilt(tiny_llama_dir, tmp_path / "model", LAST, inf)
    source, out = prompt_file(tmp_path / "p.jsonl"), tmp_path / "study"
    run = CliRunner().invoke(app, ["search", "--model", str(model), "--prompts", source, "--out", str(out), "--json"])
    assert run.exit_code == 2
    assert LAST in run.stderr
    assert not (out / "skip.json").exists()
    assert run.stdout == "" or not json.loads(run.stdout)
