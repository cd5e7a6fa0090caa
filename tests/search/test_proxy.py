from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice, pairwise
from math import inf
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.cost_fit import CostPlan
from selfspec_tune.engine.teacher_forcing import Trace, Window
from selfspec_tune.errors import BudgetError
from selfspec_tune.requests import DraftOptions, StrategyName
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages import preparation as preparation_module
from selfspec_tune.search.stages import proxy as proxy_module
from selfspec_tune.search.stages.calibration import TEXTS, Answer, spread_windows, trial_items
from selfspec_tune.search.stages.candidates import Moves, greedy_path, local_moves, prefixes
from selfspec_tune.search.stages.importance import Importance, by_worth, measure_importance, num_steps
from selfspec_tune.search.stages.proxy import Overfit, Prediction, Proxy, distance, diverse
from selfspec_tune.search.stages.ranker import NUM_PREFIXES, Ranker
from selfspec_tune.search.starts import START
from selfspec_tune.search.strategies import STRATEGIES
from selfspec_tune.search.study import StudyFolder
from tests.search_kit import SKIPPING_ALONE, Listener, hurry, make_item, read_rows

pytestmark = pytest.mark.no_cover  # tracing its many small steps takes several times as long as they do

POSITIONS = 64
FIXED_4 = [DraftPolicy(PolicyKind.FIXED, 4, 0.0)]


@dataclass
class FakeScorer:
    """Each sub-layer has a harm: the share of positions that stop matching when it is skipped."""

    harms: Sequence[float]
    approximation: str = ""
    windows: Sequence[Window] = ()
    asked: list[tuple[SkipSet, int | None]] = field(default_factory=list)
    fewest_tokens: int = 0

    def trace(self, draft: Draft) -> Trace:
        self.asked.append((draft.skip_set, draft.vocabulary))
        harm = min(1.0, sum(self._harm(index, precision) for index, precision in enumerate(draft.sublayers)))
        if draft.vocabulary is not None and draft.vocabulary < self.fewest_tokens:
            harm = 1.0
        kept = round(POSITIONS * (1 - harm))
        # Mismatches spread evenly, the draft unsure where it errs.
        match = tuple((i * kept) // POSITIONS != ((i + 1) * kept) // POSITIONS for i in range(POSITIONS))
        confidence = tuple(0.95 if same else 0.2 for same in match)
        return Trace((match,), (confidence,), (confidence,), 1.0 + harm)

    def _harm(self, index: int, precision: Precision | None) -> float:
        """At int4 a tenth of the harm of leaving the sub-layer out."""
        share = {None: 1.0, Precision.INT4: 0.1}.get(precision, 0.0)
        return share * self.harms[index]


def cost_model(num_layers: int, *, draft_base: float = 0.05) -> CostModel:
    """A step of the whole model takes 1 second, verification hardly more, sub-layers all the same."""
    each = (1.0 - draft_base) / (2 * num_layers)
    same = Precision.SAME
    verify = tuple(1 + 0.02 * k for k in range(11))
    return CostModel(verify, {same: draft_base}, {same: each}, {same: each}, num_layers)


def make_proxy(scorer: FakeScorer, num_layers: int) -> Proxy:
    return Proxy(scorer, cost_model(num_layers), FIXED_4)


def skips(num_layers: int) -> SearchSpace:
    return SearchSpace.of_skips(Draft(SkipSet.empty(num_layers)))


def joint_space(num_layers: int, **fields: Any) -> SearchSpace:
    base = Draft(SkipSet.empty(num_layers), precision=DraftPrecision.uniform(num_layers, Precision.INT4))
    return SearchSpace(base, ((Precision.INT4, Precision.SAME),) * (2 * num_layers), (Precision.SAME,), **fields)


def rises_of(harms: Sequence[float]) -> Importance:
    return Importance(tuple(harms), (0.0,) * len(harms))


def indices(draft: Draft) -> frozenset[int]:
    return draft.skip_set.indices


def test_importance_tells_harmful_sublayers_from_harmless_ones_beside_others() -> None:
    harms = [0.0, 0.001, 0.1, 0.001, 0.03, 0.001, 0.001, 0.1] * 3
    steps: list[int] = []
    found = measure_importance(FakeScorer(harms), skips(12), on_step=steps.append)
    harmless, middling, harmful = (
        mean(found.rises[i] for i, harm in enumerate(harms) if harm == level) for level in (0.001, 0.03, 0.1)
    )
    assert harmless < middling < harmful
    assert found.rises[0] == max(found.rises)  # never skipped, so never tried
    assert found.reliefs == (0.0,) * 24
    assert steps == list(range(num_steps(skips(12)))) == list(range(24))


def test_relief_is_the_fall_of_the_loss_when_one_sublayer_is_computed_precisely() -> None:
    harms = [0.5, 0.0, 0.25, 0.125]
    space = joint_space(2)
    steps: list[int] = []
    found = measure_importance(FakeScorer(harms), space, on_step=steps.append)
    assert found.reliefs == pytest.approx([0.1 * harm for harm in harms])
    assert steps == list(range(num_steps(space))) == list(range(16 + 4))


def test_reliefs_that_were_told_in_time_are_of_no_part_of_the_model_and_stand_for_the_others() -> None:
    harms = [0.001 * index for index in range(24)]
    ticks = count()
    found = measure_importance(FakeScorer(harms), joint_space(12), seconds=12.0, clock=lambda: float(next(ticks)))
    told = [index for index, relief in enumerate(found.reliefs) if relief == pytest.approx(0.1 * harms[index])]
    others = {relief for index, relief in enumerate(found.reliefs) if index not in told}
    assert len(told) == 4
    assert min(told) < 12 <= max(told)
    assert list(others) == pytest.approx([mean(found.reliefs[index] for index in told)])


def test_importance_leaves_every_sublayer_out_about_as_often_as_any_other() -> None:
    scorer = FakeScorer([0.1] * 24)
    measure_importance(scorer, skips(12), seed=3)
    base, *samples = [skip_set.indices for skip_set, _ in scorer.asked]
    times = Counter(index for sample in samples for index in sample)
    assert not base
    assert set(times) == set(range(1, 24))
    assert max(times.values()) - min(times.values()) <= 2
    assert {len(sample) for sample in samples} == {3, 4, 6, 8}


def test_importance_ends_with_its_time_but_never_before_16_drafts() -> None:
    ticks = count()
    scorer = FakeScorer([0.01] * 24)
    found = measure_importance(scorer, skips(12), seconds=5.0, clock=lambda: float(next(ticks)))
    assert 17 < len(scorer.asked) < num_steps(skips(12))
    assert found.is_known
    hurried = FakeScorer([0.01] * 24)
    measure_importance(hurried, skips(12), seconds=0.0, clock=lambda: float(next(ticks)))
    assert len(hurried.asked) == 17  # and the base


def test_sublayers_are_ordered_by_what_they_save_for_what_they_harm() -> None:
    costs = replace(cost_model(2), attention={Precision.SAME: 0.1}, mlp={Precision.SAME: 0.4})
    # The MLPs take four times as long: twice the harm still leaves them ahead.
    assert by_worth(rises_of([0.1, 0.4, 0.2, -0.3]), skips(2), costs) == [3, 1, 2]


@given(st.integers(10, 90).flatmap(lambda n: st.permutations(range(1, 2 * n))))
@settings(max_examples=60)
def test_prefixes_are_twelve_nested_sets_in_the_given_order(order: list[int]) -> None:
    num_layers = (len(order) + 1) // 2
    ladder = [draft.skip_set for draft in prefixes(order, skips(num_layers), NUM_PREFIXES)]
    assert len(ladder) == NUM_PREFIXES >= 12
    assert all(small.indices < large.indices for small, large in pairwise(ladder))
    assert all(skip_set.indices == set(order[: skip_set.num_skipped]) for skip_set in ladder)
    assert ladder[0].num_skipped == max(1, round(0.1 * 2 * num_layers))
    assert ladder[-1].num_skipped == round(2 / 3 * 2 * num_layers)


def test_prefixes_of_a_shallow_model_are_fewer_but_distinct() -> None:
    ladder = [draft.skip_set for draft in prefixes(range(1, 8), skips(4), NUM_PREFIXES)]
    assert len(ladder) == len(set(ladder)) == 5
    assert ladder[0] == SkipSet(4, (), (0,))


def test_a_proxy_scores_each_skip_set_once_and_keeps_its_first_origin() -> None:
    scorer = FakeScorer([0.1] * 8)
    proxy = make_proxy(scorer, 4)
    first = proxy(Draft(SkipSet(4, (1,))), "prefix")
    assert proxy(Draft(SkipSet(4, (1,))), "local") is first
    assert first.origin == "prefix"
    assert len(scorer.asked) == 1


def test_a_proxys_predictions_are_sorted_best_first() -> None:
    proxy = make_proxy(FakeScorer([0.3, 0.0, 0.3, 0.0, 0.3, 0.0, 0.3, 0.0]), 4)
    harmful, harmless = SkipSet(4, (1, 2)), SkipSet(4, (), (1, 2))
    proxy(Draft(harmful), "prefix")
    proxy(Draft(harmless), "prefix")
    assert [prediction.draft.skip_set for prediction in proxy.predictions] == [harmless, harmful]
    best = proxy.predictions[0]
    assert best.draft == Draft(harmless, FIXED_4[0])
    # 4 of 5 tokens of a round are drafted by 6 of 8 sub-layers, all accepted; 64 positions and one more.
    step = 0.05 + 6 * 0.95 / 8
    assert best.speedup == pytest.approx(65 / (52 * step + 13 * 1.08), rel=0.02)


def test_the_greedy_path_finds_the_harmless_sublayers() -> None:
    harms = [0.6] * 12
    for index in (3, 4, 8, 11):
        harms[index] = 0.002 * index
    proxy = make_proxy(FakeScorer(harms), 6)
    order = sorted(range(1, 12), key=lambda index: harms[index])
    scored = list(greedy_path(proxy, order, skips(6).base))
    assert proxy.predictions[0].draft.skip_set.indices == {3, 4, 8, 11}
    assert {prediction.origin for prediction in scored} == {"greedy"}


def test_the_greedy_path_never_skips_the_first_attention_and_ends() -> None:
    proxy = make_proxy(FakeScorer([0.0] * 8), 4)
    scored = list(greedy_path(proxy, range(1, 8), skips(4).base))
    assert all(0 not in prediction.draft.skip_set.attention for prediction in scored)
    assert max(prediction.draft.skip_set.num_skipped for prediction in scored) == 7


def test_the_greedy_path_gives_up_where_every_step_makes_it_worse() -> None:
    proxy = make_proxy(FakeScorer([0.5] * 40), 20)
    scored = list(greedy_path(proxy, range(1, 40), skips(20).base))
    assert max(prediction.draft.skip_set.num_skipped for prediction in scored) <= 4


def test_the_greedy_path_goes_on_from_a_draft_that_skips_already() -> None:
    harms = [0.6] * 12
    for index in (3, 4, 8, 11):
        harms[index] = 0.001
    proxy = make_proxy(FakeScorer(harms), 6)
    scored = list(greedy_path(proxy, range(1, 12), skips(6).skipping(frozenset({3, 4}))))
    assert all({3, 4} <= prediction.draft.skip_set.indices for prediction in scored)
    assert proxy.predictions[0].draft.skip_set.indices == {3, 4, 8, 11}


def test_local_moves_change_one_or_two_sublayers_of_one_of_the_best() -> None:
    proxy = make_proxy(FakeScorer([0.05] * 24), 12)
    rises = [0.05] * 24
    start = proxy(Draft(SkipSet(12, (2, 3), (4, 5))), "prefix")
    stream = local_moves(proxy, Moves(skips(12), rises_of(rises), 3))
    for _ in range(60):
        parents = [prediction.draft.skip_set for prediction in proxy.predictions[:4]]
        child = next(stream).draft.skip_set
        assert min(parent.distance(child) for parent in parents) <= 2
        assert 0 not in child.attention
    assert proxy.predictions[0].speedup >= start.speedup


def test_local_moves_improve_on_where_they_start() -> None:
    harms = [0.001 if index % 3 else 0.3 for index in range(24)]
    proxy = make_proxy(FakeScorer(harms), 12)
    start = proxy(Draft(SkipSet(12, (3,), (4,))), "prefix").speedup
    list(islice(local_moves(proxy, Moves(skips(12), rises_of(harms), 0)), 300))
    assert proxy.predictions[0].speedup > 1.2 * start
    assert proxy.predictions[0].origin == "local"


def test_local_moves_of_the_same_seed_are_the_same() -> None:
    def walk(seed: int) -> list[SkipSet]:
        proxy = make_proxy(FakeScorer([0.05] * 24), 12)
        proxy(Draft(SkipSet(12, (2, 3))), "prefix")
        return [
            prediction.draft.skip_set
            for prediction in islice(local_moves(proxy, Moves(skips(12), rises_of([0.05] * 24), seed)), 20)
        ]

    assert walk(1) == walk(1) != walk(2)


def test_local_moves_can_leave_the_empty_set() -> None:
    proxy = make_proxy(FakeScorer([0.01] * 8), 4)
    proxy(Draft(SkipSet.empty(4)), "greedy")
    found = {
        prediction.draft.skip_set.num_skipped
        for prediction in islice(local_moves(proxy, Moves(skips(4), rises_of([0.01] * 8), 0)), 30)
    }
    assert max(found) >= 2


def test_diverse_picks_keep_their_distance_and_the_best_comes_first() -> None:
    sets = [SkipSet(6, (1, 2, 3)), SkipSet(6, (1, 2)), SkipSet(6, (1, 2, 3), (4, 5)), SkipSet(6, (), (1, 2, 3))]
    predictions = [Prediction(Draft(skip_set), 2.0 - 0.1 * i, "x") for i, skip_set in enumerate(sets)]
    assert diverse(predictions, 10) == [predictions[0], predictions[3]]
    assert diverse(predictions, 10, least_distance=2) == [predictions[0], predictions[2], predictions[3]]
    assert diverse(predictions, 1) == predictions[:1]
    assert diverse([], 3) == []


@given(
    st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 5),
)
def test_diverse_never_picks_neighbours(sets: list[list[bool]], count: int, distance: int) -> None:
    predictions = [Prediction(Draft(SkipSet.from_flags(flags)), -float(i), "x") for i, flags in enumerate(sets)]
    chosen = [prediction.draft.skip_set for prediction in diverse(predictions, count, distance)]
    assert 1 <= len(chosen) <= count
    assert all(a.distance(b) >= distance for i, a in enumerate(chosen) for b in chosen[:i])


# Calibration windows


def answer(number: int, length: int, *, prompt_tokens: int = 5) -> Answer:
    return Answer(make_item(number, prompt_tokens=prompt_tokens), tuple(100 + i for i in range(length)))


def offsets(spread: Sequence[tuple[Answer, Window]]) -> list[float]:
    """Where windows begin, as a fraction of the room that their answers leave them."""
    found = []
    for owner, window in spread:
        room = len(owner.tokens) - 1 - (window.end - window.start)
        found.append((window.start - len(owner.item.tokens)) / room)
    return found


def test_windows_lie_in_the_answers_and_know_their_successors() -> None:
    answers = [answer(number, 40 + number) for number in range(6)]
    for owner, window in spread_windows(answers, length=10, most=20, seed=0):
        text = (*owner.item.tokens, *owner.tokens)
        assert window.end - window.start == 10
        assert len(owner.item.tokens) <= window.start < window.end < len(text)
        assert window.tokens == text[: window.end + 1]
        assert window.targets == text[window.start + 1 : window.end + 1]


def test_windows_are_spread_over_all_answers_before_any_comes_twice() -> None:
    answers = [answer(number, 60) for number in range(8)]
    owners = [owner.item.id for owner, _ in spread_windows(answers, length=12, most=12, seed=1)]
    assert len(owners) == 12
    assert len(set(owners[:8])) == 8


def test_windows_cover_beginnings_bodies_and_ends() -> None:
    answers = [answer(number, 120) for number in range(10)]
    fractions = offsets(spread_windows(answers, length=20, most=10, seed=0))
    thirds = [sum(low <= fraction <= low + 1 / 3 for fraction in fractions) for low in (0.0, 1 / 3, 2 / 3)]
    assert all(count >= 2 for count in thirds)
    assert sum(fraction == 0.0 for fraction in fractions) <= 1


def test_answers_too_short_to_tell_anything_are_left_out() -> None:
    spread = spread_windows([answer(0, 8), answer(1, 9)], length=5, most=4, seed=0)
    assert {owner.item.id for owner, _ in spread} == {"set/1"}
    assert spread_windows([answer(0, 8)], length=5, most=4, seed=0) == []


def test_a_short_answer_gives_one_window_and_not_the_same_again() -> None:
    spread = spread_windows([answer(0, 12)], length=24, most=8, seed=0)
    assert len(spread) == 1
    window = spread[0][1]
    assert (window.start, window.end) == (5, 16)


def test_windows_depend_on_the_seed_alone() -> None:
    answers = [answer(number, 50) for number in range(6)]
    first, again, other = (
        [window for _, window in spread_windows(answers, length=10, most=6, seed=seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_trial_items_go_on_from_a_verified_prefix_for_a_windows_length() -> None:
    answers = [answer(number, 40) for number in range(4)]
    items = trial_items(answers, length=12, most=8, seed=0)
    assert len(items) == len({item.id for item in items}) == 8
    by_id = {owner.item.id: owner for owner in answers}
    for item in items:
        owner = by_id[item.id.rpartition("@")[0]]
        text = (*owner.item.tokens, *owner.tokens)
        assert item.tokens == text[: len(item.tokens)]
        assert len(item.tokens) > len(owner.item.tokens)
        assert item.limits.max_new_tokens == 12
        assert item.prompt is owner.item.prompt


# The stages together, on a fake scorer


def ranker(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    scorer: FakeScorer,
    num_layers: int,
    *,
    options: DraftOptions | None = None,
    whole_head: float = 0.05,
    listener: Listener | None = None,
    starts: Sequence[Draft] = (),
    calibration: Sequence[Answer] | None = None,
    held_out: Sequence[Answer] = (),
    **session: Any,
) -> Ranker:
    """A ranker whose scorer and step times are given; the head's share shrinks with the vocabulary.

    Its prompts are answers already. ``session``: what else its session does.
    """

    def measure_costs(runner: Any, context: Any, plan: CostPlan) -> CostModel:
        sizes = [size or 1024 for size in plan.vocabularies]
        heads = {size: whole_head * size / 1024 for size in sizes}
        costs = cost_model(num_layers, draft_base=heads[sizes[0]])
        return replace(costs, vocabularies=heads, vocabulary=sizes[0])

    hurry(monkeypatch)
    monkeypatch.setattr(preparation_module, "measure_costs", measure_costs)
    ticks = count()
    monkeypatch.setattr(proxy_module, "monotonic", lambda: next(ticks) / 1000)  # 1000 candidates a second
    default: dict[str, Any] = {
        "workload": SimpleNamespace(
            loaded=SimpleNamespace(num_layers=num_layers, context_length=512),
            runner=SimpleNamespace(vocabulary_size=1024),
            scorer=lambda windows, depths: scorer,
            cost_classes=(),
        ),
        "setting": SimpleNamespace(
            space=skips(num_layers),
            starts=[SimpleNamespace(drafts=starts, predicted=())],
            calibration=[answer(number, 60) for number in range(6)] if calibration is None else calibration,
            selection=held_out,
        ),
        "request": SimpleNamespace(draft=options or DraftOptions(**SKIPPING_ALONE), timeout_seconds=None),
        "strategy": STRATEGIES[StrategyName.STAGED],
        "predicts": True,
        "schedule": SimpleNamespace(num_held_out=len(held_out), num_texts=3),
        "folder": StudyFolder(folder),
        "seed": 0,
        "reporter": listener or Listener(),
        "answers": lambda items: items,
        "seconds_for_predictions": lambda num_trials: inf,
        "note": lambda best, score, stage: None,
        "tick": lambda: None,
    }
    made: Any = SimpleNamespace(**default | session)
    return Ranker(made)


HARMS = [0.3 if index % 4 == 0 else 0.004 for index in range(24)]


def test_a_ranking_holds_the_best_and_most_diverse_predictions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listener = Listener()
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, listener=listener).rank(0.6, 0.1)
    harmful = [found.importance.rises[i] for i, harm in enumerate(HARMS) if harm > 0.1]
    assert min(harmful) > max(found.importance.rises[i] for i, harm in enumerate(HARMS) if harm < 0.1)
    drafts = [candidate.draft for candidate in found.candidates]
    assert 1 <= len(drafts) <= TEXTS[-1].keep
    assert all(distance(a, b) >= 2 for i, a in enumerate(drafts) for b in drafts[:i])
    speedups = [candidate.speedup for candidate in found.candidates]
    assert speedups == sorted(speedups, reverse=True)
    assert not drafts[0].skip_set.indices & {index for index in range(24) if index % 4 == 0}
    assert listener.stage_names == ["importance", "costs", "proxy"]
    assert listener.bests[-1].speedup is not None
    assert not listener.notices


def test_an_approximate_scorer_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listener = Listener()
    scorer = FakeScorer(HARMS, approximation="drafts are guessed")
    assert ranker(monkeypatch, tmp_path, scorer, 12, listener=listener).rank(0.3, 0.1).candidates
    assert any("approximate for this architecture: drafts are guessed." in notice for notice in listener.notices)


def test_a_killed_ranking_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12).rank(0.3, 0.1)
    again = FakeScorer(HARMS)
    assert ranker(monkeypatch, tmp_path, again, 12).rank(0.3, 0.1) == whole
    assert len(again.asked) <= 30  # of hundreds: those that begin the local moves anew


def test_starts_are_predicted_first_and_the_best_three_stay_candidates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = [Draft(SkipSet(12, (0, 2, 4), (2 * i,))) for i in range(5)]  # nobody would keep these
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, starts=bad).rank(0.6, 0.1)
    starts = [candidate for candidate in found.candidates if candidate.origin == START]
    assert len(starts) == 3
    assert all(0 not in candidate.draft.skip_set.attention for candidate in starts)
    speedups = [candidate.speedup for candidate in found.candidates]
    assert speedups == sorted(speedups, reverse=True)
    assert found.candidates[0].origin != START
    assert found.queue == [*starts, *(c for c in found.candidates if c.origin != START)]


def test_every_start_is_predicted_however_little_time_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starts = [Draft(SkipSet(12, (i,), (11,))) for i in range(1, 11)]
    ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, starts=starts).rank(0.001, 0.1)
    narrow = [row for row in read_rows(tmp_path / "proxy.jsonl") if row["text"] == "narrow"]
    assert [row["origin"] for row in narrow[:11]] == [START] * 10 + ["base"]


def test_a_start_that_nothing_beats_comes_out_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    harmless = tuple(i for i in range(12) if i % 2)
    best = Draft(SkipSet(12, harmless, tuple(range(12))))
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, starts=[best]).rank(0.05, 0.1)
    assert found.queue[0].draft.skip_set == best.skip_set
    assert found.queue[0].origin == START


def test_a_search_that_learns_its_text_by_heart_ends_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held_out = [answer(100 + number, 60) for number in range(3)]
    endless = FakeScorer([0.001] * 24)
    limit = 20.0
    alone = ranker(monkeypatch, tmp_path / "alone", endless, 12).rank(limit, 0.1)
    assert alone.candidates
    fewer = FakeScorer([0.001] * 24)
    assert ranker(monkeypatch, tmp_path / "told", fewer, 12, held_out=held_out).rank(limit, 0.1).candidates


def test_held_out_answers_too_short_to_tell_anything_end_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mute = [answer(100 + number, 5) for number in range(3)]
    made = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, held_out=mute)
    assert made.rank(0.6, 0.1).candidates


def test_calibration_answers_too_short_for_a_text_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mute = [answer(number, 5) for number in range(6)]
    made = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, calibration=mute)
    with pytest.raises(BudgetError, match="too short for the narrow text"):
        made.rank(0.3, 0.1)


def test_an_interrupted_ranking_tells_no_best_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    events: list[str] = []

    def run(stop_after: int) -> None:
        def tick() -> None:
            events.append("new")
            if events.count("new") == stop_after:
                raise KeyboardInterrupt

        told: dict[str, Any] = {"note": lambda *_: events.append("best"), "tick": tick}
        made = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, **told)
        with suppress(KeyboardInterrupt):
            made.rank(0.3, 0.1)

    run(stop_after=40)
    assert "best" in events
    events.clear()
    run(stop_after=1000)
    assert events[0] == "new"
    assert "best" in events


def test_the_whole_vocabulary_is_kept_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = ranker(
        monkeypatch, tmp_path, FakeScorer(HARMS), 12, options=DraftOptions(**SKIPPING_ALONE, vocabulary="full")
    ).rank(0.05, 0.1)
    assert found.vocabulary is None


def test_a_vocabulary_given_as_a_number_is_capped_at_the_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for option, expected in (("300", 300), ("5000", 1024)):
        scorer = FakeScorer(HARMS)
        found = ranker(
            monkeypatch, tmp_path / option, scorer, 12, options=DraftOptions(**SKIPPING_ALONE, vocabulary=option)
        ).rank(0.05, 0.1)
        assert found.vocabulary == expected
        assert all(candidate.draft.vocabulary == expected for candidate in found.candidates)


def test_a_smaller_vocabulary_is_chosen_where_the_head_is_dear_and_the_tokens_suffice(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS, fewest_tokens=200), 12, whole_head=0.5).rank(0.05, 0.1)
    assert found.vocabulary == 256


def test_the_whole_vocabulary_is_chosen_where_a_part_would_miss_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS, fewest_tokens=1000), 12, whole_head=0.2).rank(0.05, 0.1)
    assert found.vocabulary is None


def test_a_given_draft_length_and_threshold_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = DraftOptions(**SKIPPING_ALONE, max_draft_tokens=7, exit_threshold=0.25)
    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, options=options).rank(0.05, 0.1)
    policies = {candidate.draft.policy for candidate in found.candidates}
    assert policies == {DraftPolicy(PolicyKind.THRESHOLD, 7, 0.25)}


def test_proposing_ends_before_its_time_once_a_small_models_sets_are_used_up(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    scorer = FakeScorer([0.01] * 6)
    assert ranker(monkeypatch, tmp_path, scorer, 3).rank(3600.0, 0.1).candidates
    assert len({skip_set for skip_set, _ in scorer.asked}) <= 2**6


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_very_shallow_model_is_ranked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_layers: int) -> None:
    found = ranker(monkeypatch, tmp_path, FakeScorer([0.01] * 2 * num_layers), num_layers).rank(0.05, 0.1)
    assert found.candidates


# Precision


def test_moves_of_a_joint_space_try_other_precisions_and_keep_to_the_memory() -> None:
    def copy_bytes(draft: Draft) -> int:
        return sum(precision is Precision.INT4 for precision in draft.sublayers)

    space = joint_space(6, copy_bytes=copy_bytes, allowed_bytes=12)
    moves = Moves(space, Importance((0.1,) * 12, (0.1,) * 12), 0)
    draft, seen = space.base, set()
    for _ in range(200):
        draft = moves([draft])
        assert space.admits(draft)
        seen |= set(draft.sublayers)
    assert seen == {None, Precision.INT4, Precision.SAME}


def test_moves_try_other_numbers_of_experts_where_there_are_some() -> None:
    for experts in ((None,), (None, 2, 1)):
        moves = Moves(replace(skips(3), experts=experts), Importance((0.1,) * 6, (0.1,) * 6), 0)
        assert {moves([skips(3).base]).experts for _ in range(50)} == set(experts)


def test_a_harmful_sublayer_is_raised_where_that_pays() -> None:
    harms = [0.002] * 12
    harms[7] = 5.0
    scorer, space = FakeScorer(harms), joint_space(6, allowed_bytes=0)
    costs = cost_model(6)
    low = {Precision.INT4: costs.attention[Precision.SAME] / 4}
    costs = replace(costs, attention={**costs.attention, **low}, mlp={**costs.mlp, **low})
    proxy = Proxy(scorer, costs, FIXED_4)
    proxy(space.base, "base")
    moves = Moves(space, measure_importance(scorer, space), 0)
    list(islice(local_moves(proxy, moves), 200))
    assert proxy.predictions[0].draft.sublayers[7] is Precision.SAME


def test_the_running_overfit_tells_when_only_the_searchs_own_text_gains() -> None:
    draft = Draft(SkipSet.empty(2))
    here = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    there = iter([1.0, 1.1, 1.05, 1.08, 1.0, 1.09])
    overfit = Overfit(lambda draft: next(there))
    growing = []
    for speedup in here:
        overfit.check(Prediction(draft, speedup, "local"))
        growing.append(overfit.is_growing)
    assert growing == [False] * 5 + [True]
    assert overfit.best == 1.1
    assert overfit.gap == pytest.approx(2.0 / 1.09 - 1)


def test_a_cost_aware_search_begins_by_a_threshold_and_ends_by_its_own_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bests: list[Draft] = []
    options = DraftOptions(**SKIPPING_ALONE | {"policy": "cost-aware"})

    def note(best: Draft, score: float, stage: str) -> None:
        bests.append(best)

    found = ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, options=options, note=note).rank(0.6, 0.1)
    assert {best.policy.kind for best in bests} == {PolicyKind.COST_AWARE}
    assert {candidate.draft.policy.kind for candidate in found.candidates} == {PolicyKind.COST_AWARE}
    assert all(candidate.draft.policy.prior is not None for candidate in found.candidates)
    assert found.candidates[0].draft.skip_set.num_skipped > 4


def test_calibration_prompts_are_answered_when_a_text_needs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []
    answers = [answer(number, 60) for number in range(40)]

    def made(items: Sequence[Answer]) -> Sequence[Answer]:
        asked.append(len(items))
        return items

    ranker(monkeypatch, tmp_path, FakeScorer(HARMS), 12, calibration=answers, answers=made).rank(0.3, 0.1)
    assert list(dict.fromkeys(asked)) == [text.num_answers for text in TEXTS]
    assert sorted(asked) == asked
