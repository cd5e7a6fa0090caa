"""What must be known before any candidate is proposed: importance, step costs, the draft's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import mean, median
from typing import Any

from selfspec_tune.checks import whole
from selfspec_tune.draft import MOST_TOKEN_IDS, Draft, DraftPolicy, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.sublayer import SubLayerKind
from selfspec_tune.engine.cost_design import CostPlan
from selfspec_tune.engine.cost_fit import CONTEXTS, measure_costs
from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.calibration import Answer
from selfspec_tune.search.stages.importance import Importance, by_worth, measure_importance, num_steps
from selfspec_tune.search.stages.proxy import Proxy

_SCHEMA, _VERSION = "selfspec-tune/preparation", 1
_LARGE_RESIDUAL = 0.05
_MIDDLING = 0.3  # of the skippable sub-layers left out: the draft that a vocabulary is chosen for


@dataclass(frozen=True, slots=True)
class Preparation:
    """Importance, the cost model for drafts over ``vocabulary`` token ids (None: all), and that vocabulary."""

    importance: Importance
    costs: CostModel
    vocabulary: int | None


class Preparer:
    """Measures a `Preparation`; what is known already is read from ``file``."""

    def __init__(
        self,
        workload: Workload,
        space: SearchSpace,
        answers: Sequence[Answer],
        vocabulary: str,
        reporter: Reporter,
        file: Path,
        seed: int = 0,
        importance_seconds: float = inf,
    ) -> None:
        self._workload = workload
        self._space = space
        self._answers = answers
        self._vocabulary = vocabulary
        self._reporter = reporter
        self._file = file
        self._seed = seed
        self._importance_seconds = importance_seconds
        self._known = _read(file, space.num_layers) if file.exists() else {}

    def prepare(
        self,
        scorer: Callable[[], DraftScorer],
        policies: Sequence[DraftPolicy],
        cost_seconds: float,
        importance_scorer: DraftScorer | None,
    ) -> Preparation:
        """Everything, the step costs in about ``cost_seconds``.

        ``scorer``: gives the one that tells vocabularies apart, where there are several. Importance is told on little
        text of its own; without a scorer for it, all sub-layers matter alike.
        """
        unknown = Importance.unknown(2 * self._space.num_layers)
        importance = self._importance(importance_scorer) if importance_scorer is not None else unknown
        costs = self._costs(cost_seconds)
        vocabulary = self._choose_vocabulary(scorer, importance, costs, policies)
        return Preparation(importance, costs.with_vocabulary(vocabulary or self._whole), vocabulary)

    def _importance(self, scorer: DraftScorer) -> Importance:
        if "importance" not in self._known:
            self._reporter.stage("importance", "drafts without random sub-layers")
            total = num_steps(self._space)
            found = measure_importance(
                scorer,
                self._space,
                self._seed,
                on_step=lambda i: self._reporter.progress(Progress(i, total)),
                seconds=self._importance_seconds,
            )
            self._keep("importance", found.to_dict())
        return Importance.from_dict(self._known["importance"])

    def _costs(self, seconds: float) -> CostModel:
        """The cost model at the middle of a typical calibration text, for every vocabulary in question."""
        if "cost_model_seconds" not in self._known:
            self._reporter.stage("costs", "the engine's steps, timed")
            lengths = [len(answer.item.tokens) + len(answer.tokens) // 2 for answer in self._answers]
            precision = self._space.base.precision
            plan = CostPlan(
                self._workload.loaded.context_length,
                home=round(median(lengths)),
                lengths=CONTEXTS,
                vocabularies=self._vocabularies(),
                precisions=() if precision.is_same else (precision,),
                classes=self._workload.cost_classes,
                experts=self._space.fewest_experts,
                drafts=tuple(self._other_precisions()),
                seconds=seconds,
            )
            answer = self._answers[0]
            costs = measure_costs(self._workload.runner, [*answer.item.tokens, *answer.tokens], plan)
            self._keep("cost_model_seconds", costs.to_dict())
            self._warn(costs)
        return CostModel.from_dict(self._known["cost_model_seconds"])

    def _warn(self, costs: CostModel) -> None:
        if costs.residual > _LARGE_RESIDUAL:
            self._reporter.notice(
                f"Draft steps cost what their parts do only within {costs.residual:.0%}: predictions may be off by as "
                "much. A quiet machine makes them steadier."
            )

    def _other_precisions(self) -> list[Draft]:
        """Drafts that tell what a sub-layer costs at each precision other than the base's and the model's own.

        They keep as many of the first layers as fit into memory beside the base's copies, all and without their
        attentions; where a kind has several classes, each of these alone. A precision of which nothing fits is left
        untold, and so is it of a class that none of these layers has.
        """
        base, drafts = self._space.base, []
        for precision in self._space.precisions:
            if precision in (Precision.SAME, base.precision.of(0)):
                continue
            for num_layers in range(self._space.num_layers // 2, 0, -1):
                kept = [precision if i < 2 * num_layers else None for i in range(len(base.sublayers))]
                if self._space.admits(base.with_sublayers(kept), beside=base):
                    drafts.append(base.with_sublayers(kept))
                    drafts += [base.with_sublayers(alone) for alone in self._apart(kept)]
                    if (fewest := self._space.fewest_experts) is not None:
                        drafts.append(replace(base.with_sublayers(kept), experts=fewest))
                    break
        return [replace(draft, vocabulary=self._vocabularies()[0]) for draft in drafts]

    def _apart(self, kept: Sequence[Precision | None]) -> Iterator[list[Precision | None]]:
        """The MLPs of ``kept`` alone, or where there are more than one class of each kind, every class of it alone."""
        classes = [one for one in self._workload.cost_classes if any(kept[index] for index in one.sublayers)]
        if len(classes) == len(SubLayerKind):
            classes = [one for one in classes if one.kind is SubLayerKind.MLP]
        for one in classes:
            yield [precision if i in one.sublayers else None for i, precision in enumerate(kept)]

    @property
    def _whole(self) -> int:
        return self._workload.runner.vocabulary_size

    def _vocabularies(self) -> tuple[int | None, ...]:
        """How many token ids drafts may cover: what was asked for, or the whole and parts of it."""
        if self._vocabulary == "full":
            return (None,)
        if self._vocabulary != "auto":
            return (min(int(self._vocabulary), self._whole),)
        return (None, *(size for size in (self._whole // 2, self._whole // 4, self._whole // 8) if size > 0))

    def _choose_vocabulary(
        self,
        scorer: Callable[[], DraftScorer],
        importance: Importance,
        costs: CostModel,
        policies: Sequence[DraftPolicy],
    ) -> int | None:
        """How much of the vocabulary to draft from: what predicts best for a middling draft."""
        sizes = self._vocabularies()
        if len(sizes) == 1:
            return sizes[0]
        if "vocabulary" not in self._known:
            order = by_worth(importance, self._space, costs)
            share = _MIDDLING if importance.is_known else 0.0
            draft = self._space.skipping(frozenset(order[: round(share * len(order))]))
            answer_tokens = round(mean(len(answer.tokens) for answer in self._answers))
            made, speedups = scorer(), dict[int | None, float]()
            for size in sizes:
                known = costs.with_vocabulary(size or self._whole)
                proxy = Proxy(made, known, policies, answer_tokens=answer_tokens)
                speedups[size] = proxy(replace(draft, vocabulary=size), "vocabulary").speedup
            self._keep("vocabulary", max(speedups, key=lambda size: speedups[size]))
        found: int | None = self._known["vocabulary"]
        return found

    def _keep(self, name: str, value: Any) -> None:
        self._known = {**self._known, name: value}
        write_json_atomic(self._file, {"schema": _SCHEMA, "version": _VERSION, **self._known})


def _read(file: Path, num_layers: int) -> dict[str, Any]:
    """What a `Preparer` kept, so far as it came. Raises `FileFormatError`."""
    known = read_versioned(file, _SCHEMA, _VERSION)
    with taken_apart(file):
        if "importance" in known:
            found = Importance.from_dict(known["importance"])
            for rows in (found.rises, found.reliefs):
                whole("the number of sub-layers", len(rows), 2 * num_layers, 2 * num_layers)
        if "cost_model_seconds" in known:
            whole("num_layers", CostModel.from_dict(known["cost_model_seconds"]).num_layers, num_layers, num_layers)
        if known.get("vocabulary") is not None:
            whole("vocabulary", known["vocabulary"], 1, MOST_TOKEN_IDS)
    return known
