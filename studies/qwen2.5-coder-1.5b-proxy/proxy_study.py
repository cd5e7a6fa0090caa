"""The study of the proxy's faithfulness: texts, drafts predicted and taken, real runs, records of both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import candidates
import faithfulness
import study_kit as study
import torch
from plain_text import Text, plain_text

from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.draft.rounds import acceptance_rate
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.engine.teacher_forcing import Window, make_scorer
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.measure.arms import NULL, autoregressive_arm, contender_arm, contender_id
from selfspec_tune.measure.contest import Contest, run_together
from selfspec_tune.measure.lossless import make_check
from selfspec_tune.measure.run_log import measurement_provenance
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.report.progress import PlainReporter
from selfspec_tune.results import PairedRun
from selfspec_tune.results.metrics import count_lossless, decode_times, rounds_of
from selfspec_tune.search.conclusion import predicted_from_counts
from selfspec_tune.search.setup import SearchSetup
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.calibration import Answer, calibrate, trial_items
from selfspec_tune.search.stages.preparation import Preparation, Preparer
from selfspec_tune.search.stages.proxy import Prediction, Proxy
from selfspec_tune.search.stages.replay import policies
from selfspec_tune.search.study_files import ProxyLog, draft_record, prediction_record, read_prediction

SHARED, STANDALONE = "shared", "standalone"
FIXED_LENGTH = 4  # a policy that never asks: what bad drafts are slow by
TOGETHER = 4  # drafts that share a baseline in a block


class ProxyStudy:
    """The study of one model in one folder."""

    def __init__(self, arguments: argparse.Namespace, setting: SearchSetup, reporter: PlainReporter) -> None:
        self._arguments = arguments
        self._setting = setting
        self._workload = setting.workload
        self._reporter = reporter
        self._out: Path = arguments.out
        self._kinds = [PolicyKind(kind) for kind in arguments.policies]

    def run(self) -> dict[str, Any]:
        """The results."""
        same, answers = self._text("calibration", self._setting.calibration)
        held_out, _ = self._text("held-out", self._setting.selection)
        known = self._prepare(same, answers)
        self._workload.costs = known.costs
        space = self._setting.space.with_vocabulary(known.vocabulary).costed_by(known.costs)
        pool, picked = self._picked(same, space, known)
        if isinstance(self._workload.runner, FastRunner):
            self._workload.runner.extra_memory_bytes = None  # many drafts take turns: no copy is made twice
        check = make_check(self._workload, same.items)
        shared = [prediction.draft for prediction in picked[SHARED]]
        speed = self._speed(same, shared, known)
        on_same = self._measured(same, shared, check, "runs.jsonl")
        on_held_out = self._measured(held_out, shared, check, "held-out.jsonl")
        alone = self._run_alone(same, [prediction.draft for prediction in picked[STANDALONE]], check)
        drafts = [
            self._record(SHARED, found, known, on_same[contender_id(found.draft)])
            | _figures("held_out_", on_held_out[contender_id(found.draft)], found.draft, known)
            for found in picked[SHARED]
        ]
        for found in picked[STANDALONE]:
            record = self._record(STANDALONE, found, known, alone[contender_id(found.draft)])
            drafts.append(record | {"measured": None})
        return {
            "schema": "selfspec-tune/proxy-study",
            "version": 1,
            "provenance": measurement_provenance(self._workload, check, prompts=self._setting.prompt_record()),
            "settings": read_json(self._out / "settings.json"),
            "precision": str(space.base.precision) if not space.is_joint else "chosen for each sub-layer",
            "pool": pool,
            "proxy": speed,
            "baseline_against_itself": {
                name: study.said(_decode_speedup(runs[NULL]))
                for name, runs in (("same", on_same), ("held-out", on_held_out))
            },
            "comparisons": faithfulness.compared(drafts),
            "drafts": drafts,
        }

    def _text(self, split: str, prompts: Sequence[WorkItem]) -> tuple[Text, list[Answer]]:
        arguments, workload = self._arguments, self._workload
        self._reporter.stage("calibrate", f"{len(prompts)} {split} prompts")
        answers = calibrate(
            workload, prompts, self._setting.first_draft(), self._out / "calibration.json", self._reporter
        )
        # The prefill gives the first token of each.
        items = trial_items(answers, length=arguments.length + 1, most=arguments.windows, seed=arguments.seed)
        return plain_text(workload, items, self._out / f"{split}-text.json"), answers

    def _prepare(self, text: Text, answers: Sequence[Answer]) -> Preparation:
        scorer = make_scorer(self._workload.runner, self._workload.loaded, text.windows)
        preparer = Preparer(
            self._workload,
            self._setting.space,
            answers,
            self._setting.request.draft.vocabulary,
            self._reporter,
            self._out / "preparation.json",
        )
        return preparer.prepare(lambda: scorer, _grid(self._kinds[0]), self._arguments.cost_seconds, scorer)

    def _picked(self, text: Text, space: SearchSpace, known: Preparation) -> tuple[int, dict[str, list[Prediction]]]:
        """How many drafts were predicted, and those taken of each variant, which are kept in a file."""
        file, num_layers = self._out / "picked.json", space.num_layers
        if not file.exists():
            shared = self._predicted(SHARED, text, space, known, None)
            drafts = [prediction for prediction in shared if prediction.draft.policy.kind is self._kinds[0]]
            found = {SHARED: shared, STANDALONE: self._predicted(STANDALONE, text, space, known, drafts)}
            number, lowest = self._arguments.sets, self._arguments.lowest
            picked = {variant: candidates.spread(all_, number, lowest) for variant, all_ in found.items()}
            records = {variant: [prediction_record(one) for one in taken] for variant, taken in picked.items()}
            write_json_atomic(file, {"pool": len(drafts), **records})
        kept = read_json(file)
        return kept["pool"], {
            variant: [read_prediction(record, num_layers) for record in kept[variant]]
            for variant in (SHARED, STANDALONE)
        }

    def _predicted(
        self, variant: str, text: Text, space: SearchSpace, known: Preparation, drafts: Sequence[Prediction] | None
    ) -> list[Prediction]:
        """``drafts``, or else a new pool, as the proxy of ``variant`` predicts them under every policy."""
        self._reporter.stage("proxy", f"{variant} cache, {len(self._kinds)} policies")
        arguments, workload = self._arguments, self._workload
        alone = variant == STANDALONE
        made = make_scorer(workload.runner, workload.loaded, text.windows, standalone=alone, depths=arguments.depths)
        scorer = candidates.Remembering(made)
        first, *others = [self._proxy(variant, kind, scorer, known) for kind in self._kinds]
        if drafts is None:
            fingerprint, most = workload.loaded.fingerprint, arguments.pool
            studied = candidates.drafts_of_study(arguments.study, fingerprint, space, most) if arguments.study else []
            found = candidates.pool(first, space, known.importance, most, arguments.seed, studied)
        else:
            found = [first(prediction.draft, prediction.origin) for prediction in drafts]
        return [*found, *(proxy(prediction.draft, prediction.origin) for proxy in others for prediction in found)]

    def _proxy(self, variant: str, kind: PolicyKind, scorer: candidates.Remembering, known: Preparation) -> Proxy:
        log, name = ProxyLog(self._out / "proxy.jsonl", self._workload.loaded.num_layers), f"{variant} {kind}"
        return Proxy(
            scorer,
            known.costs,
            _grid(kind),
            earlier=log.predictions(name),
            on_new=lambda prediction, seconds: log.add(name, prediction, seconds),
        )

    def _speed(self, text: Text, drafts: Sequence[Draft], known: Preparation) -> dict[str, Any]:
        """Of the token-exact proxy, as a search begins with it, on about as much text as its target is for."""
        file = self._out / "speed.json"
        if not file.exists():
            reached = list(accumulate(window.end - window.start for window in text.windows))
            windows = text.windows[: 1 + sum(positions < faithfulness.POSITIONS for positions in reached)]
            self._evaluation_seconds(windows, drafts, known)  # makes the copies that are missing
            seconds = self._evaluation_seconds(windows, drafts, known)
            found = {
                "policy": self._kinds[0].value,
                "positions": reached[len(windows) - 1],
                "threads": torch.get_num_threads(),
                "evaluations": len(seconds),
                "seconds": sum(seconds),
                "evaluations_a_second": len(seconds) / sum(seconds),
            }
            write_json_atomic(file, found)
        speed: dict[str, Any] = read_json(file)
        return speed

    def _evaluation_seconds(
        self, windows: Sequence[Window], drafts: Sequence[Draft], known: Preparation
    ) -> list[float]:
        """Of each different draft, its pass and its replay, in a scorer that knows none of them."""
        seconds: list[float] = []
        scorer = make_scorer(self._workload.runner, self._workload.loaded, windows)
        proxy = Proxy(scorer, known.costs, _grid(self._kinds[0]), on_new=lambda _, taken: seconds.append(taken))
        for draft in drafts:
            proxy(draft, "speed")
        return seconds

    def _measured(self, text: Text, drafts: Sequence[Draft], check: Any, log: str) -> dict[str, list[PairedRun]]:
        """Runs of every draft by its id, a few beside each baseline, and of the baseline against itself."""
        workload = self._workload
        self._reporter.stage("measure", f"{len(drafts)} drafts on {len(text.items)} windows, {log}")
        arms = [autoregressive_arm(workload, NULL), *(contender_arm(workload, draft) for draft in drafts)]
        groups = [arms[start : start + TOGETHER] for start in range(0, len(arms), TOGETHER)]
        rounds, file = self._arguments.rounds, self._out / log
        contests = [Contest(workload, check, text.items, group, rounds=rounds, log=file) for group in groups]
        return _by_method(run for runs in run_together(contests, self._reporter) for run in runs)

    def _run_alone(self, text: Text, drafts: Sequence[Draft], check: Any) -> dict[str, list[PairedRun]]:
        """Runs in which every draft has a cache of its own."""
        ours = self._workload
        self._reporter.stage("measure", f"{len(drafts)} standalone drafts on {len(text.items)} windows")
        runner = StandaloneRunner.of(ours.runner, ours.loaded)
        workload = Workload(ours.loaded, runner, ours.options, costs=ours.costs)
        arms = [contender_arm(workload, draft) for draft in drafts]
        return _by_method(
            Contest(workload, check, text.items, arms, log=self._out / "standalone.jsonl").run(self._reporter)
        )

    @staticmethod
    def _record(variant: str, found: Prediction, known: Preparation, runs: Sequence[PairedRun]) -> dict[str, Any]:
        """What the results say of one draft."""
        return {
            "id": contender_id(found.draft),
            "variant": variant,
            "about": found.draft.describe(),
            "origin": found.origin,
            "policy": found.draft.policy.kind.value,
            **draft_record(found.draft),
            "predicted": found.speedup,
            **_figures("", runs, found.draft, known),
            "acceptance_rate": acceptance_rate(rounds_of(runs)),
            "lossy": bool(count_lossless(runs).mismatches),
        }


def _figures(prefix: str, runs: Sequence[PairedRun], draft: Draft, known: Preparation) -> dict[str, Any]:
    """Decode speedup as measured, None where a run was not lossless, and from the runs' counts."""
    is_lossy = bool(count_lossless(runs).mismatches)
    measured = None if is_lossy else study.said(_decode_speedup(runs))
    counted = predicted_from_counts(runs, draft, known.costs)
    return {f"{prefix}measured": measured, f"{prefix}counted": counted}


def _decode_speedup(runs: Sequence[PairedRun]) -> Interval:
    return cluster_bootstrap(*decode_times(runs))


def _by_method(runs: Any) -> dict[str, list[PairedRun]]:
    found: dict[str, list[PairedRun]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def _grid(kind: PolicyKind) -> list[Any]:
    """The policies of one kind that a draft gets the best of; a fixed one has one length, however bad the draft."""
    return list(policies(kind, (FIXED_LENGTH,)) if kind is PolicyKind.FIXED else policies(kind))
