"""What a user would pick instead, as arms: lossless, counted, and honest about what this model cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec_tune.draft import Round
from selfspec_tune.draft.rounds import num_drafted, num_tokens
from selfspec_tune.engine import Limits, RawGeneration, choose_runner
from selfspec_tune.errors import RivalError
from selfspec_tune.measure import rivals
from selfspec_tune.measure.arms import Arm, autoregressive_arm, generate_arm, guarded
from selfspec_tune.measure.hf_generate import counted_rounds, explained, hf_generate, within
from selfspec_tune.measure.pairs import arm_run
from selfspec_tune.measure.rivals import (
    draft_model_arm,
    early_exit_arm,
    prompt_lookup_arm,
    why_no_early_exit,
    why_not_drafted_by,
)
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt
from selfspec_tune.requests import PromptOptions
from tests import kit
from tests.engine_kit import load, prompt_tokens
from tests.runs import accepted_of, drafted_of

NEW_TOKENS = 24


def make_workload(directory: Path, **options: Any) -> Workload:
    loaded = load(directory)
    return Workload(
        loaded, choose_runner(loaded), PromptOptions(**({"max_new_tokens": NEW_TOKENS, "seed": 3} | options))
    )


def make_item(tokens: Sequence[int], max_new_tokens: int = NEW_TOKENS, eos: frozenset[int] = frozenset()) -> WorkItem:
    return WorkItem("p", Prompt("p", "code", "some text"), tuple(tokens), Limits(max_new_tokens, eos))


@pytest.fixture(scope="module")
def workload(tiny_llama_dir: Path) -> Workload:
    return make_workload(tiny_llama_dir)


@pytest.fixture(scope="module")
def same_family(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A smaller model with the same vocabulary."""
    return load(kit.tiny_llama(tmp_path_factory.mktemp("draft"), layers=2, seed=1))


@pytest.fixture(scope="module")
def other_family(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A smaller model with another vocabulary."""
    return load(kit.tiny_llama(tmp_path_factory.mktemp("other"), layers=2, seed=1, vocab=100))


@pytest.fixture
def twin(tiny_llama_dir: Path) -> LoadedModel:
    """The model itself, loaded a second time: every draft of it is right."""
    return load(tiny_llama_dir)


def all_rivals(workload: Workload, same_family: LoadedModel, other_family: LoadedModel) -> list[Arm]:
    return [
        prompt_lookup_arm(workload),
        early_exit_arm(workload, 1),
        draft_model_arm(workload, same_family),
        draft_model_arm(workload, other_family),
    ]


# -- tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4), ids=["prompt lookup", "early exit", "draft model", "other vocabulary"])
def test_every_rival_gives_the_baselines_tokens(
    workload: Workload, same_family: LoadedModel, other_family: LoadedModel, number: int
) -> None:
    arm = all_rivals(workload, same_family, other_family)[number]
    repetitive = [*prompt_tokens(12), *prompt_tokens(12), *prompt_tokens(6)]
    for tokens in (prompt_tokens(20), prompt_tokens(33, 1), repetitive):
        item = make_item(tokens)
        plain, rival = autoregressive_arm(workload).decode(item), arm.decode(item)
        assert (rival.tokens, rival.stop_reason) == (plain.tokens, plain.stop_reason)
        check_record(rival)


@pytest.mark.parametrize("number", range(4), ids=["prompt lookup", "early exit", "draft model", "other vocabulary"])
def test_every_rival_ends_where_the_baseline_ends(
    workload: Workload, same_family: LoadedModel, other_family: LoadedModel, number: int
) -> None:
    arm = all_rivals(workload, same_family, other_family)[number]
    text = autoregressive_arm(workload).decode(make_item(prompt_tokens(20))).tokens
    for limit in (1, 2, 3, 7):
        item = make_item(prompt_tokens(20), limit)
        assert arm.decode(item).tokens == text[:limit]
    for index in (0, 1, 5, 9):
        item = make_item(prompt_tokens(20), eos=frozenset({text[index]}))
        rival = arm.decode(item)
        assert (rival.tokens, rival.stop_reason) == (text[: text.index(text[index]) + 1], "eos")


def test_a_draft_that_is_always_right_ends_where_the_baseline_ends(workload: Workload, twin: LoadedModel) -> None:
    arm = draft_model_arm(workload, twin)
    text = autoregressive_arm(workload).decode(make_item(prompt_tokens(20))).tokens
    for limit in (1, 2, 5, NEW_TOKENS):
        assert arm.decode(make_item(prompt_tokens(20), limit)).tokens == text[:limit]
    for index in (1, 4, 8):
        item = make_item(prompt_tokens(20), eos=frozenset({text[index]}))
        assert arm.decode(item).tokens == text[: text.index(text[index]) + 1]


def test_tokens_past_a_limit_are_dropped() -> None:
    assert within([5, 6, 7, 8], Limits(3)) == [5, 6, 7]
    assert within([5, 6, 2, 8], Limits(9, frozenset({2}))) == [5, 6, 2]
    assert within([], Limits(3, frozenset({2}))) == []


def test_rivals_sample_with_the_same_settings(
    tiny_llama_dir: Path, same_family: LoadedModel, other_family: LoadedModel, tmp_path: Path
) -> None:
    certain = make_workload(tiny_llama_dir, temperature=0.7, top_k=1)
    free = make_workload(tiny_llama_dir, temperature=0.9, top_p=0.9)
    item = make_item(prompt_tokens(20), 8)
    plain = autoregressive_arm(certain).decode(item).tokens
    for arm in all_rivals(certain, same_family, other_family)[:3]:
        assert arm.decode(item).tokens == plain
    larger = load(kit.tiny_llama(tmp_path, layers=2, vocab=150))
    for arm in all_rivals(free, same_family, larger):
        assert 1 <= len(arm.decode(item).tokens) <= 8


def test_rivals_take_every_sampling_option(
    tiny_llama_dir: Path, same_family: LoadedModel, other_family: LoadedModel
) -> None:
    item = make_item(prompt_tokens(20), 12)
    without = autoregressive_arm(make_workload(tiny_llama_dir)).decode(item).tokens
    certain = make_workload(tiny_llama_dir, temperature=0.7, min_p=1.0)  # the most probable one alone
    assert autoregressive_arm(certain).decode(item).tokens == without
    penalised = make_workload(tiny_llama_dir, repetition_penalty=1.3)
    assert autoregressive_arm(penalised).decode(item).tokens != without
    for workload in (certain, penalised):
        plain = autoregressive_arm(workload).decode(item).tokens
        for arm in [*all_rivals(workload, same_family, other_family)[:3], generate_arm(workload)]:
            assert arm.decode(item).tokens == plain


def test_the_checkpoints_own_generation_defaults_do_not_reach_a_rival(tiny_llama_dir: Path) -> None:
    workload = make_workload(tiny_llama_dir)
    plain = autoregressive_arm(workload).decode(make_item(prompt_tokens(20))).tokens
    own = workload.loaded.model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature = 1.9, True, 5.0  # type: ignore[union-attr]
    for arm in (prompt_lookup_arm(workload), early_exit_arm(workload, 2)):
        assert arm.decode(make_item(prompt_tokens(20))).tokens == plain
    assert workload.loaded.model.generation_config is own


# -- what is recorded --------------------------------------------------------------------------------------------


def check_record(generation: RawGeneration) -> None:
    """Each round adds its accepted tokens and one more; the first one's come with the prefill."""
    assert num_tokens(generation.rounds) == len(generation.tokens)
    assert generation.first_tokens == generation.rounds[0].num_tokens
    assert generation.prefill_seconds > 0
    assert generation.decode_seconds >= 0
    assert (generation.draft_seconds, generation.verify_seconds) == (0, 0)
    assert arm_run(generation).decode_steps == len(generation.tokens) - generation.first_tokens


def test_a_draft_that_is_always_right_is_always_accepted(workload: Workload, twin: LoadedModel) -> None:
    twin.model.generation_config.assistant_confidence_threshold = 0.0  # type: ignore[union-attr]
    generation = draft_model_arm(workload, twin).decode(make_item(prompt_tokens(20)))
    assert accepted_of(generation.rounds) == drafted_of(generation.rounds)
    assert (generation.rounds[0].num_drafted, generation.first_tokens) == (20, 21)


def test_prompt_lookup_drafts_what_it_has_seen(workload: Workload) -> None:
    item = make_item(prompt_tokens(20), 40)
    text = autoregressive_arm(workload).decode(item).tokens
    known = make_item([*item.tokens, *text, *item.tokens], 30)
    generation = prompt_lookup_arm(workload).decode(known)
    assert max(drafted_of(generation.rounds)) == rivals.PROMPT_LOOKUP_TOKENS
    check_record(generation)


def test_rounds_that_do_not_explain_the_tokens_are_left_out() -> None:
    rounds = [Round(3, 1), Round(2, 2)]
    assert explained(rounds, 5, 5) == rounds
    assert explained(rounds, 6, 6) == []
    assert explained([Round(3, 4)], 5, 5) == []


def test_only_the_rounds_before_the_end_of_sequence_count() -> None:
    rounds = [Round(3, 1), Round(5, 4), Round(2, 2)]  # 2, 5 and 3 tokens
    assert explained(rounds, 10, 10) == rounds
    assert explained(rounds, 10, 7) == rounds[:2]
    assert explained(rounds, 10, 4) == [Round(3, 1), Round(5, 2)]
    assert explained(rounds, 10, 1) == [Round(3, 1)]
    assert explained(rounds, 11, 4) == []


class _PastTheEnd:
    """A model whose ``generate`` goes on past its end of sequence, as some versions of transformers do."""

    device = "cpu"
    generation_config: Any = None

    def __init__(self, rounds: Sequence[Sequence[int]], clock: list[float]) -> None:
        self._rounds, self._clock = rounds, clock

    def generate(self, input_ids: torch.Tensor, *, streamer: Any, **_: Any) -> torch.Tensor:
        streamer.put(input_ids)
        for tokens in self._rounds:
            self._clock[0] += 1.0
            streamer.put(torch.tensor([tokens]))
        return torch.cat([input_ids, torch.tensor([[token for tokens in self._rounds for token in tokens]])], -1)


@pytest.mark.parametrize(
    ("rounds", "tokens", "prefill", "decode"),
    [
        ([[5, 6], [7, 2, 9], [8, 8, 8], [8, 8]], [5, 6, 7, 2], 1.0, 1.0),
        ([[5, 6], [7, 9], [8, 2]], [5, 6, 7, 9, 8, 2], 1.0, 2.0),
        ([[2, 6], [7, 9]], [2], 1.0, 0.0),
        ([[5], [6], [7]], [5, 6, 7], 1.0, 2.0),
    ],
    ids=["in the middle", "at the end", "at once", "never"],
)
def test_a_rival_is_timed_to_its_end_of_sequence(
    rounds: Sequence[Sequence[int]],
    tokens: list[int],
    prefill: float,
    decode: float,
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("selfspec_tune.measure.hf_generate.perf_counter", lambda: clock[0])
    past: Any = replace(workload.loaded, model=_PastTheEnd(rounds, clock))  # type: ignore[arg-type]
    made = hf_generate(workload, make_item(prompt_tokens(9), eos=frozenset({2})), past)
    assert made.tokens == tokens
    assert (made.prefill_seconds, made.decode_seconds) == (prefill, decode)
    assert made.stop_reason == ("eos" if 2 in tokens else "length")


def test_a_transformers_that_makes_its_generators_elsewhere_is_not_counted() -> None:
    with counted_rounds(object()) as rounds:
        pass
    assert rounds == explained(rounds, 0, 0) == []


def test_counting_leaves_the_model_as_it_was(workload: Workload) -> None:
    before = set(vars(workload.loaded.model))
    hf_generate(workload, make_item(prompt_tokens(8), 4), prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="too many"), counted_rounds(workload.loaded.model):
        raise ValueError("too many")
    assert set(vars(workload.loaded.model)) == before


# -- what a model cannot do --------------------------------------------------------------------------------------


def test_early_exit_leaves_after_the_layers_it_is_told(workload: Workload) -> None:
    ran: list[int] = []
    attention = workload.loaded.sublayers.attention
    handles = [
        module.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, module in enumerate(attention)
    ]
    generation = early_exit_arm(workload, 3).decode(make_item(prompt_tokens(20), 8))
    for handle in handles:
        handle.remove()
    drafted = num_drafted(generation.rounds)
    assert drafted > 0
    assert ran.count(0) - ran.count(3) == ran.count(2) - ran.count(3) >= drafted
    assert ran.count(3) == len(generation.rounds)


def test_a_model_whose_forward_runs_every_layer_cannot_exit_early(tmp_path: Path) -> None:
    workload = make_workload(kit.tiny_of_type(tmp_path, "gpt2", layers=3))
    with pytest.raises(RivalError, match="runs all of its layers") as caught:
        early_exit_arm(workload, 1).decode(make_item(prompt_tokens(8), 4))
    assert caught.value.arm_id == "hf-early-exit"
    assert workload.loaded.model.config.num_hidden_layers == 3


def test_a_model_of_one_layer_cannot_exit_early(workload: Workload) -> None:
    for layer in (0, 4, 9):
        assert "no layer to leave after" in str(why_no_early_exit(workload.loaded, layer))
    assert why_no_early_exit(workload.loaded, 3) is None


def test_early_exit_is_refused_where_transformers_looks_for_another_module(tmp_path: Path) -> None:
    llama4 = load(kit.tiny_of_type(tmp_path, "llama4_text"))
    reason = why_no_early_exit(llama4, 1)
    assert reason == (
        "transformers' early exit looks for a module language_model in Llama4ForCausalLM, which has none."
    )


def test_an_early_exit_that_fails_leaves_the_model_its_layers(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = early_exit_arm(workload, 1)
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(AssistedCandidateGenerator, "get_candidates", fail)
    with pytest.raises(RivalError, match=r"^RuntimeError: out of memory$"):
        arm.decode(make_item(prompt_tokens(8), 4))
    assert workload.loaded.model.config.num_hidden_layers == 4


def test_a_long_reason_is_cut_to_a_line() -> None:
    def fail(item: WorkItem) -> RawGeneration:
        raise RuntimeError("x" * 999)

    with pytest.raises(RivalError) as caught:
        guarded(Arm("a", "a", fail)).decode(make_item([4]))
    assert len(str(caught.value)) <= 300


def test_an_interruption_is_no_failure_of_a_rival() -> None:
    def interrupt(item: WorkItem) -> RawGeneration:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(Arm("a", "a", interrupt)).decode(make_item([4]))


def test_a_draft_model_of_the_same_size_of_vocabulary_but_other_tokens_is_refused(
    workload: Workload, same_family: LoadedModel
) -> None:
    class Shifted:
        """The same tokens with other numbers."""

        def get_vocab(self) -> dict[str, int]:
            return {token: index + 1 for token, index in same_family.tokenizer.get_vocab().items()}

    tokenizer: Any = Shifted()
    stranger = replace(same_family, tokenizer=tokenizer)
    assert why_not_drafted_by(workload.loaded, same_family) is None
    assert "another vocabulary" in str(why_not_drafted_by(workload.loaded, stranger))
    with pytest.raises(RivalError, match="Give a draft model of the same family"):
        draft_model_arm(workload, stranger).decode(make_item(prompt_tokens(8), 4))


def test_a_draft_model_with_another_vocabulary_is_translated(workload: Workload, other_family: LoadedModel) -> None:
    arm = draft_model_arm(workload, other_family)
    assert "universal assisted decoding" in arm.description
    assert other_family.fingerprint in arm.description
    assert "universal" not in draft_model_arm(workload, workload.loaded).description


def test_a_rival_runs_in_bfloat16_too(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir, "bfloat16")
    workload = Workload(loaded, choose_runner(loaded), PromptOptions(max_new_tokens=8))
    assert loaded.dtype == torch.bfloat16
    for arm in (prompt_lookup_arm(workload), early_exit_arm(workload, 2)):
        assert len(arm.decode(make_item(prompt_tokens(12), 8)).tokens) == 8
