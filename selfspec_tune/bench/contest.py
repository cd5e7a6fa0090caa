"""A contest: several arms against the baseline over the same items, interleaved and resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfspec_tune.errors import RivalError
from selfspec_tune.files import append_jsonl, read_jsonl
from selfspec_tune.measure.arms import Arm, autoregressive_arm
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.pairs import Block, blocks, measure_block
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.results import PairedRun


@dataclass(frozen=True, slots=True)
class Contest:
    """Who competes over what.

    ``contenders`` run on every item; ``references`` in the first round on the first
    ``num_reference_items`` only. With a ``log``, each block's records are appended to it
    as they come, and blocks that it holds already are not measured again.

    A rival that cannot decode here, from the start or from some item on, is left out and
    its records with it: ``unavailable`` then holds the reason by the arm's id.
    """

    workload: Workload
    check: LosslessCheck
    items: Sequence[WorkItem]
    contenders: Sequence[Arm]
    references: Sequence[Arm] = ()
    num_reference_items: int = 0
    rounds: int = 1
    log: Path | None = None
    unavailable: dict[str, str] = field(default_factory=dict)
    _baseline: Arm = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_baseline", autoregressive_arm(self.workload))

    @property
    def arms(self) -> list[Arm]:
        """Every arm but the baseline."""
        return [*self.contenders, *self.references]

    def arms_of(self, block: Block) -> list[Arm]:
        """The arms that take part in ``block``."""
        with_references = block.index < self.num_reference_items
        arms = self.arms if with_references else self.contenders
        return [arm for arm in arms if arm.id not in self.unavailable]

    def run(self, reporter: Reporter) -> list[PairedRun]:
        """Measure every block that is not in the log; all records, logged ones included."""
        sequence = list(blocks(self.items, self.rounds))
        logged = self._logged()
        runs: list[PairedRun] = []
        pending: list[Block] = []
        for block in sequence:
            records = [logged.get((arm.id, *_key(block))) for arm in self.arms_of(block)]
            if all(records):
                runs += [record for record in records if record is not None]
            else:
                pending.append(block)
        if pending:
            self._warm_up(reporter)
        for done, block in enumerate(pending, start=len(sequence) - len(pending)):
            reporter.progress(Progress(done, len(sequence), detail=block.item.id))
            measured = self._measure(block, reporter)
            if self.log is not None:
                append_jsonl(self.log, *(record.to_dict() for record in measured))
            runs += measured
        reporter.progress(Progress(len(sequence), len(sequence)))
        return [run for run in runs if run.method not in self.unavailable]

    def _measure(self, block: Block, reporter: Reporter) -> list[PairedRun]:
        """The block's records; where a rival fails, all of it again without that one."""
        while True:
            try:
                return measure_block(self.workload, self._baseline, self.arms_of(block), block, self.check)
            except RivalError as error:
                self._leave_out(error, reporter)

    def _leave_out(self, error: RivalError, reporter: Reporter) -> None:
        self.unavailable[error.arm_id] = str(error)
        reporter.notice(f"{error.arm_id} is left out: {error}")

    def _warm_up(self, reporter: Reporter) -> None:
        """Every arm once, at full length on the longest item, so that nothing grows while timed."""
        longest = max(self.items, key=lambda item: len(item.tokens) + item.limits.max_new_tokens)
        self.workload.runner.reserve(len(longest.tokens) + longest.limits.max_new_tokens)
        for arm in [self._baseline, *self.arms]:
            try:
                arm.decode(shortened(longest, 8))
            except RivalError as error:
                self._leave_out(error, reporter)

    def _logged(self) -> dict[tuple[str, str, str, int], PairedRun]:
        """Records of the log by method, item, prompt and round."""
        rows = read_jsonl(self.log) if self.log is not None else []
        records = [PairedRun.model_validate(row) for row in rows]
        return {(run.method, run.prompt_id, run.prompt_hash, run.round): run for run in records}


def _key(block: Block) -> tuple[str, str, int]:
    return block.item.id, block.item.prompt.hash, block.round


def shortened(item: WorkItem, max_new_tokens: int) -> WorkItem:
    """The same item with a smaller limit."""
    limits = type(item.limits)(min(max_new_tokens, item.limits.max_new_tokens), item.limits.eos_token_ids)
    return WorkItem(item.id, item.prompt, item.tokens, limits)
