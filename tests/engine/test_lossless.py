"""Whatever drafts, and however: the output is plain decoding's. One table of cases, which holds every pair of settings.

Rows whose passes give the same bits for any number of tokens are held to equality. In half precision other runners may
part with plain decoding where two tokens tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfspec_tune.draft import Draft, DraftPrecision, Source
from selfspec_tune.draft.ngram import NgramIndex, NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.source import Found, common_prefix
from selfspec_tune.engine import Limits, RawGeneration, Runner, Sampler
from selfspec_tune.engine.decoding import RoundTokens, plain_rounds, speculative_rounds
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.measure.lossless import rounding_bound
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.covering import rows
from tests.engine_kit import RUNNERS, STEPS, by_search, check_record, every_policy, load, prompt_tokens
from tests.enumeration import EveryWay, distribution
from tests.runs import accepted_of, drafted_of

LAYERS, VOCABULARY = 3, 24
_tiny_llama = partial(kit.tiny_llama, layers=LAYERS, vocab=VOCABULARY)
_tiny_qwen2 = partial(kit.tiny_qwen2, layers=LAYERS, vocab=VOCABULARY)


# Those that draft alone have a second runner for it, with a cache of its own.
ENGINES = [*RUNNERS, *(f"{name} alone" for name in RUNNERS if name in ("fast", "native"))]
SHAPES: dict[str, Callable[[Path], Path]] = {
    "llama": _tiny_llama,
    "multi-head": partial(_tiny_llama, kv_heads=4),
    "one KV head, tied": partial(_tiny_llama, kv_heads=1, tied=True),
    "qwen2": _tiny_qwen2,
    "qwen2, tied": partial(_tiny_qwen2, tied=True),
}
_EVERY = tuple(range(LAYERS))
SKIPPED = {
    "nothing": SkipSet.empty(LAYERS),
    "every attention": SkipSet(LAYERS, _EVERY),
    "every MLP": SkipSet(LAYERS, (), _EVERY),
    "some": SkipSet(LAYERS, (1,), (2,)),
    "everything": SkipSet(LAYERS, _EVERY, _EVERY),
    "all but one": SkipSet(LAYERS, _EVERY, _EVERY[1:]),
}
PRECISIONS = {
    "same": DraftPrecision(),
    "int8": DraftPrecision.parse("int8; head int8", LAYERS),
    "int4": DraftPrecision.parse("int4; head int4", LAYERS),
    "mixed": DraftPrecision.parse("int4 mlp 0-1; int8 attn 0,2; head int4", LAYERS),
}
LOOKUPS: dict[str, tuple[NgramLookup | None, bool]] = {  # and whether the model drafts
    "no lookup": (None, True),
    "lookup": (NgramLookup(3, 2, 4, draft_tokens=0), True),
    "lookup and guesses": (NgramLookup(3, 1, 2, draft_tokens=3), True),
    "lookup alone": (NgramLookup(4, 1, 10), False),
    "lookup as by default": (NgramLookup(), True),
}
POLICIES = {policy.kind.value: policy for policy in every_policy(max_draft_tokens=4, exit_threshold=0.25)}
PROMPTS = {"one token": 1, "short": 9, "longer than a verification": 40, "past two blocks of the cache": 250}
SAMPLERS = {"greedy": Sampler(), "top-k, top-p": Sampler(0.9, 2, 0.95), "min-p": Sampler(1.2, 2, min_p=0.4)}
VOCABULARIES = {"whole": None, "cut": 17, "more than there is": 1000}  # of the draft
PENALTIES = {"no penalty": 1.0, "penalty": 1.3, "reward": 0.9}
FACTORS: dict[str, Sequence[str] | Mapping[str, Any]] = {
    "engine": ENGINES,
    "dtype": ["float32", "bfloat16", "float16"],
    "shape": SHAPES,
    "skipped": SKIPPED,
    "precision": PRECISIONS,
    "lookup": LOOKUPS,
    "policy": POLICIES,
    "vocabulary": VOCABULARIES,
    "sampling": SAMPLERS,
    "end": ["no end", "an end"],
    "prompt": PROMPTS,
    "cached": ["nothing cached", "half cached"],
    "penalty": PENALTIES,
}
NEW_TOKENS = 20
SAMPLED = 4  # tokens of a sampled answer, each of whose ways is taken
INFLUENCE = 0.35  # of all sub-layers but the first MLP: a draft without some is often right, and often not


def _is_exact(engine: str, dtype: str) -> bool:
    """Whether passes over several tokens choose what single steps do: the kernels' bits, or float32's distance."""
    return dtype == "float32" or engine.startswith("native")


def _is_served(row: Mapping[str, str]) -> bool:
    engine, dtype = row.get("engine", "fast"), row.get("dtype", "float32")
    if engine == "reference" and row.get("precision", "same") != "same":
        return False  # it has no copies
    if engine.startswith("native") and dtype == "float16":
        return False  # nor have the kernels such weights
    return row.get("sampling", "greedy") == "greedy" or dtype == "float32" or _is_half_exact(row)


def _is_half_exact(row: Mapping[str, str]) -> bool:
    """Distributions of two runs are compared: near-ties would not do."""
    return row["dtype"] == "bfloat16" and row.get("engine", "native").startswith("native") and "native" in ENGINES


TABLE = rows(_is_served, **FACTORS)


@dataclass(frozen=True)
class Case:
    """One row of the table, ready to be decoded."""

    loaded: LoadedModel
    runner: Runner
    full: Any  # the runner itself, or where drafts have one of their own that of the full model
    draft: Draft
    sampler: Sampler  # its penalty counts where decoding is greedy too
    prompt: list[int]
    known: int  # tokens of the prompt that are cached
    has_end: bool
    is_exact: bool

    @property
    def greedy(self) -> Sampler:
        """The sampler's penalty without its draws."""
        return Sampler(repetition_penalty=self.sampler.repetition_penalty)

    @property
    def cached(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, of the full model."""
        return [self.full.keys_and_values(layer) for layer in range(LAYERS)]

    @property
    def distance(self) -> float:
        """Of what passes over several tokens compute from what single steps do."""
        return 0.0 if self.full.name == "native" else 1e-5

    @property
    def is_model(self) -> bool:
        """Whether the draft is the whole model, so that all that it drafts is right."""
        draft = self.draft
        is_whole = draft.skip_set == SKIPPED["nothing"] and draft.precision.is_same and draft.vocabulary != 17
        return is_whole and self.is_exact and not draft.sources

    def decode(self, limits: Limits, sampler: Sampler, draft: Draft | None) -> tuple[RawGeneration, list[RoundTokens]]:
        """Plainly, or with a draft; the cache is looked at after every round."""
        record, found = RawGeneration(), list[RoundTokens]()
        if self.known and self.runner.length < self.known:
            self.runner.reserve(len(self.prompt) + limits.max_new_tokens)
            prefill(self.runner, self.prompt[: self.known])
        ask = (self.runner, self.prompt, limits, sampler)
        if draft is None:
            rounds = plain_rounds(*ask, record, known=self.known)
        else:
            rounds = speculative_rounds(*ask, draft, STEPS, record, known=self.known)
        length = len(self.prompt) - 1
        for round_ in rounds:
            length += round_.round.num_accepted + 1
            assert self.runner.length == length
            found.append(round_)
        assert record.prefilled == len(self.prompt) - self.known
        return record, found

    def processed(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Logits [vocabulary] after ``tokens``, under the penalty and what the sampler has: by transformers."""
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(self.sampler.repetition_penalty)])
        if not self.sampler.greedy:
            processors += [
                TemperatureLogitsWarper(self.sampler.temperature),
                TopKLogitsWarper(self.sampler.top_k),
                TopPLogitsWarper(self.sampler.top_p),
                MinPLogitsWarper(self.sampler.min_p),
            ]
        found: Tensor = processors(torch.tensor([list(tokens)]), logits.float()[None])[0]
        return found

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits [positions, vocabulary] by one forward of the model without a cache: no runner takes part."""
        found: Tensor = self.loaded.model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
        return found[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], LoadedModel]:
    """A model of each shape and type, made when first asked for; read only."""
    directory = cache(lambda shape: SHAPES[shape](tmp_path_factory.mktemp("model")))

    @torch.no_grad()
    def made(shape: str, dtype: str) -> LoadedModel:
        loaded = load(directory(shape), dtype)
        for number, layer in enumerate(loaded.sublayers.layers):
            layer.self_attn.o_proj.weight.mul_(INFLUENCE)  # type: ignore[union-attr, operator]
            layer.mlp.down_proj.weight.mul_(INFLUENCE if number else 2.0)  # type: ignore[union-attr, operator]
        return loaded

    return cache(made)


@pytest.fixture
def case(row: dict[str, str], model: Callable[[str, str], LoadedModel]) -> Case:
    return _case(row, model)


def _case(row: Mapping[str, str], model: Callable[[str, str], LoadedModel]) -> Case:
    loaded = model(row["shape"], row["dtype"])
    name, _, alone = row["engine"].partition(" ")
    full = RUNNERS[name](loaded)
    ngram, model_drafts = LOOKUPS[row["lookup"]]
    length = PROMPTS[row["prompt"]]
    stretch = prompt_tokens(-(-length // 3), len(row["shape"]), VOCABULARY)
    return Case(
        loaded,
        StandaloneRunner.of(full, loaded) if alone else full,
        full,
        Draft(
            SKIPPED[row["skipped"]],
            POLICIES[row["policy"]],
            PRECISIONS[row["precision"]],
            vocabulary=VOCABULARIES[row["vocabulary"]],
            sources=() if ngram is None else (ngram,),
            model_drafts=model_drafts,
        ),
        replace(SAMPLERS[row["sampling"]], repetition_penalty=PENALTIES[row["penalty"]]),
        (3 * stretch)[:length],
        length // 2 if row["cached"] == "half cached" else 0,
        row["end"] == "an end",
        _is_exact(row["engine"], row["dtype"]),
    )


def _named(row: Mapping[str, str]) -> str:
    return "-".join(row.values())


@pytest.mark.parametrize("row", TABLE, ids=_named)
def test_greedy_output_is_plain_decodings_token_for_token(case: Case) -> None:
    _check_greedy(case)


def _check_greedy(case: Case) -> None:
    text = case.decode(Limits(NEW_TOKENS), case.greedy, None)[0].tokens
    _check_most_probable(case, text)
    cached = case.cached
    made = _check_draft(case, text, Limits(NEW_TOKENS))
    if case.is_exact:  # nothing of a draft stays cached
        torch.testing.assert_close(case.cached, cached, rtol=0, atol=case.distance)
    again, _ = case.decode(Limits(NEW_TOKENS), case.greedy, case.draft)
    assert (again.tokens, again.rounds, again.stop_reason) == (made.tokens, made.rounds, made.stop_reason)
    _check_draft(case, text, Limits(1))
    _check_draft(case, text, Limits(3))
    if case.has_end:
        for place in range(2, NEW_TOKENS, 5):
            _check_draft(case, text, Limits(NEW_TOKENS, frozenset({text[place]})))


def _check_draft(case: Case, text: Sequence[int], limits: Limits) -> RawGeneration:
    """A drafted answer is the beginning of the ``text`` that plain decoding gives, up to its limits."""
    made, found = case.decode(limits, case.greedy, case.draft)
    check_record(made, limits, case.draft)
    _check_sources(case, found)
    if case.is_model:
        assert accepted_of(made.rounds) == drafted_of(made.rounds)
    ends = (place + 1 for place, token in enumerate(text) if token in limits.eos_token_ids)
    expected = text[: min(limits.max_new_tokens, next(ends, NEW_TOKENS))]
    if made.tokens != expected:
        _check_tie(case, expected, made.tokens)
    return made


def _check_most_probable(case: Case, tokens: Sequence[int]) -> None:
    """Plain decoding is the model's own most probable text: in half precision other roundings may choose otherwise."""
    if case.loaded.dtype == torch.float32:
        rows_ = case.logits([*case.prompt, *tokens])[len(case.prompt) - 1 : -1]
        contexts = ([*case.prompt, *tokens[:place]] for place in range(len(tokens)))
        expected = [int(case.processed(row, context).argmax()) for row, context in zip(rows_, contexts, strict=True)]
        assert tokens == expected


def _check_tie(case: Case, plain: Sequence[int], made: Sequence[int]) -> None:
    """The first token that differs has all but plain decoding's logit."""
    assert not case.is_exact
    first = next(place for place, (one, other) in enumerate(zip(plain, made, strict=False)) if one != other)
    context = [*case.prompt, *plain[:first]]
    logits = case.logits(context)[-1]
    bound = rounding_bound(case.loaded.dtype, float(logits.abs().max()))
    logits = case.processed(logits, context)
    assert float(logits.max() - torch.minimum(logits[plain[first]], logits[made[first]])) <= bound


def _check_sources(case: Case, found: Sequence[RoundTokens]) -> None:
    """What was looked up is what a search of the text so far finds, and the model drafts from its vocabulary."""
    text = list(case.prompt)
    for round_ in found:
        if round_.round.source == Source.MODEL:
            assert all(token < (case.draft.vocabulary or VOCABULARY) or token in text for token in round_.drafted)
        elif round_.drafted:
            (lookup,) = case.draft.sources
            assert isinstance(lookup, NgramLookup)
            expected = by_search(text, lookup)
            assert expected is not None
            assert tuple(round_.drafted) == expected[: len(round_.drafted)]
        text += round_.tokens


ENUMERATED = [row for row in TABLE if row["sampling"] != "greedy"]


@pytest.mark.parametrize("row", ENUMERATED, ids=_named)
def test_sampled_answers_follow_plain_decodings_joint_distribution(case: Case) -> None:
    _check_sampled(case)


def _check_sampled(case: Case) -> None:
    limits = Limits(SAMPLED, frozenset({VOCABULARY // 2}) if case.has_end else frozenset())

    def answers(draft: Draft | None) -> dict[tuple[int, ...], float]:
        return distribution(case.sampler, lambda every: answer(every, draft))

    def answer(every: Sampler, draft: Draft | None) -> tuple[int, ...]:
        made, _ = case.decode(limits, every, draft)
        assert isinstance(every, EveryWay)
        if case.is_model and every.probability > 1e-5:  # else it is the rounding of a sum that has rejected a token
            assert accepted_of(made.rounds) == drafted_of(made.rounds)
        return tuple(made.tokens)

    expected = _joint(case, limits) if case.loaded.dtype == torch.float32 else answers(None)
    found = answers(case.draft)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert sum(abs(found.get(answer, 0.0) - expected.get(answer, 0.0)) for answer in found.keys() | expected) < 2e-5


def _joint(case: Case, limits: Limits) -> dict[tuple[int, ...], float]:
    """Probability of every answer by the model's own logits."""
    open_, ended = {(): 1.0}, dict[tuple[int, ...], float]()
    for _ in range(limits.max_new_tokens):
        grown: dict[tuple[int, ...], float] = {}
        for tokens, probability in open_.items():
            context = [*case.prompt, *tokens]
            shares = case.processed(case.logits(context)[-1], context).softmax(-1)
            for token, share in enumerate(shares.tolist()):
                if share > 0:
                    where = ended if token in limits.eos_token_ids else grown
                    where[(*tokens, token)] = probability * share
        open_ = grown
    return ended | open_


# -- what the table catches --------------------------------------------------------------------------------------


def _accept_one_more(drafted: Sequence[int], targets: Sequence[int]) -> int:
    return min(common_prefix(drafted, targets) + 1, len(drafted))


def _accept_everything(sampler: Sampler, drafted: list[int], _: object, target: Tensor) -> tuple[int, int]:
    return len(drafted), sampler.draw(target[len(drafted)])


def _rewind_less(runner: FastRunner, length: int, rewind: Callable[..., None] = FastRunner.rewind) -> None:
    rewind(runner, length + 1)


def _find_later(index: NgramIndex, find: Callable[[NgramIndex], Found] = NgramIndex.find) -> Found:
    found = find(index)
    return found._replace(tokens=(*found.tokens[1:], *found.tokens[:1]))


def _forget_min_p(
    sampler: Sampler, logits: Tensor, probabilities: Callable[..., Tensor] = Sampler.probabilities
) -> Tensor:
    return probabilities(Sampler(sampler.temperature, sampler.top_k, sampler.top_p), logits)


Check = Callable[[Case], None]
BROKEN: dict[str, tuple[str, object, Check, dict[str, str]]] = {
    "a drafted token too many is accepted": (
        "selfspec_tune.engine.decoding.common_prefix",
        _accept_one_more,
        _check_greedy,
        {},
    ),
    "every drawn token is accepted": ("selfspec_tune.engine.decoding.accept", _accept_everything, _check_sampled, {}),
    "a rejected token stays cached": (f"{FastRunner.__module__}.FastRunner.rewind", _rewind_less, _check_greedy, {}),
    "a lookup reads one token ahead": (
        f"{NgramIndex.__module__}.NgramIndex.find",
        _find_later,
        _check_greedy,
        {"lookup": "lookup"},
    ),
    "min-p is forgotten": (
        f"{Sampler.__module__}.Sampler.probabilities",
        _forget_min_p,
        _check_sampled,
        {"sampling": "min-p"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_table_catches_what_is_broken(
    name: str, model: Callable[[str, str], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, instead, check, setting = BROKEN[name]
    monkeypatch.setattr(place, instead)
    rows_ = ENUMERATED if check is _check_sampled else TABLE
    chosen = [row for row in rows_ if setting.items() <= row.items() and row["engine"] == "fast"]
    assert any(_is_caught(check, _case(row, model)) for row in chosen)


def _is_caught(check: Check, case: Case) -> bool:
    try:
        check(case)
    except AssertionError:
        return True
    return False
