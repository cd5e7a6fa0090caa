"""A contest: several arms against the baseline over the same items, interleaved and resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """

    workload: Workload
    check: LosslessCheck
    items: Sequence[WorkItem]
    contenders: Sequence[Arm]
    references: Sequence[Arm] = ()
    num_reference_items: int = 0
    rounds: int = 1
    log: Path | None = None
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
        return self.arms if with_references else list(self.contenders)

    def run(self, reporter: Reporter) -> list[PairedRun]:
        """Measure every block that is not in the log; all records, logged ones included."""
        runs = self._logged()
        finished = {(run.method, run.prompt_id, run.round) for run in runs}
        sequence = list(blocks(self.items, self.rounds))
        pending = [block for block in sequence if not self._is_finished(block, finished)]
        if pending:
            self._warm_up()
        for block in pending:
            done = len(sequence) - len(pending) + pending.index(block)
            reporter.progress(Progress(done, len(sequence), detail=block.item.id))
            records = measure_block(self.workload, self._baseline, self.arms_of(block), block, self.check)
            self._write(records)
            runs += records
        reporter.progress(Progress(len(sequence), len(sequence)))
        return runs

    def _is_finished(self, block: Block, finished: set[tuple[str, str, int]]) -> bool:
        return all((arm.id, block.item.id, block.round) in finished for arm in self.arms_of(block))

    def _warm_up(self) -> None:
        """Every arm once, at full length on the longest item, so that nothing grows while timed."""
        longest = max(self.items, key=lambda item: len(item.tokens) + item.limits.max_new_tokens)
        self.workload.runner.reserve(len(longest.tokens) + longest.limits.max_new_tokens + 1)
        for arm in [self._baseline, *self.arms]:
            arm.decode(shortened(longest, 8))

    def _logged(self) -> list[PairedRun]:
        if self.log is None or not self.log.exists():
            return []
        known = {arm.id for arm in self.arms}
        wanted = {item.id for item in self.items}
        records = [PairedRun.model_validate(row) for row in read_jsonl(self.log)]
        return [run for run in records if run.method in known and run.prompt_id in wanted]

    def _write(self, records: Sequence[PairedRun]) -> None:
        if self.log is not None:
            for record in records:
                append_jsonl(self.log, record.to_dict())


def shortened(item: WorkItem, max_new_tokens: int) -> WorkItem:
    """The same item with a smaller limit."""
    limits = type(item.limits)(min(max_new_tokens, item.limits.max_new_tokens), item.limits.eos_token_ids)
    return WorkItem(item.id, item.prompt, item.tokens, limits)
