"""A contest: several arms against the baseline over the same items, interleaved and resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfspec_tune.errors import RivalError
from selfspec_tune.files import append_jsonl, read_jsonl, taken_apart
from selfspec_tune.measure.arms import GENERATE, Arm, autoregressive_arm
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.pairs import Block, blocks, measure_block, turned
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.measure.workload import WorkItem, Workload, shortened
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.results import PairedRun

_WARM_UP_TOKENS = 8
# A rival that takes so many times as long as model.generate on each of so many prompts is not measured on more.
_HOPELESS, _ENOUGH_PROMPTS = 4.0, 4
Key = tuple[str, str, str, int]


class MeasurementInterrupted(KeyboardInterrupt):
    """Ctrl-C within a contest; its message says how far it came and how to go on."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """Ends a contest before its last item: once no ``seconds_left`` are, and ``least_items`` were measured.

    The order of the items is fixed beforehand and every block is whole, so ending early selects nothing. But arms that
    the log lacked may then have fewer items than those that it held: compare them `on_common_prompts` alone.
    """

    seconds_left: Callable[[], float]
    least_items: int

    def is_up(self, block: Block) -> bool:
        """Whether ``block`` comes too late."""
        return block.index >= self.least_items and self.seconds_left() <= 0


@dataclass(frozen=True, slots=True)
class Contest:
    """Who competes over what.

    ``contenders`` run on every item; ``references`` in the first round on the first
    ``num_reference_items`` only. With a ``log``, each block's records are appended to it
    as they come, marked with ``point`` (the value of a sweep) and ``session``. What the log
    holds of this point already is not measured again; an arm that a block of the log lacks
    is measured in a block of its own, beside a baseline of its own. With a ``limit`` further items are
    left out when its time is up. With a ``plain_limit``, records tell what the memory allowed while they were made.

    A rival of transformers that is hopelessly slow on the first items is not measured on the rest: one such may take
    longer than all other arms together. A rival that cannot decode here, from the start or from some item on, is left
    out and its records with it: ``unavailable`` then holds the reason by the arm's id, and so does a
    line of the log.
    """

    workload: Workload
    check: LosslessCheck
    items: Sequence[WorkItem]
    contenders: Sequence[Arm]
    references: Sequence[Arm] = ()
    num_reference_items: int = 0
    rounds: int = 1
    log: Path | None = None
    point: float | None = None
    session: int | None = None
    limit: TimeLimit | None = None
    plain_limit: PlainLimit | None = None
    unavailable: dict[str, str] = field(default_factory=dict)
    _given_up: set[str] = field(init=False, default_factory=set)
    _records: dict[Key, PairedRun] = field(init=False, default_factory=dict)
    _baseline: Arm = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_baseline", autoregressive_arm(self.workload))

    @property
    def arms(self) -> list[Arm]:
        """Every arm but the baseline."""
        return [*self.contenders, *self.references]

    @property
    def sequence(self) -> list[Block]:
        """Every block, in order."""
        return list(blocks(self.items, self.rounds))

    @property
    def longest(self) -> WorkItem:
        """The item that needs most positions."""
        return max(self.items, key=_positions)

    def arms_of(self, block: Block) -> list[Arm]:
        """The arms that take part in ``block``."""
        with_references = block.index < self.num_reference_items
        arms = self.arms if with_references else self.contenders
        return [arm for arm in arms if arm.id not in self.unavailable]

    @property
    def runs(self) -> list[PairedRun]:
        """What was measured, logged records included, block by block, in the arms' order."""
        keys = (_key(arm, block) for block in self.sequence for arm in self.arms_of(block))
        return [self._records[key] for key in keys if key in self._records]

    def missing(self) -> list[tuple[Block, list[Arm]]]:
        """The blocks that are to be measured, each with the arms whose records the log lacks.

        Raises `FileFormatError`.
        """
        self._records.update(self._logged())
        lacking = [
            (block, [arm for arm in self.arms_of(block) if _key(arm, block) not in self._records])
            for block in self.sequence
        ]
        return [(block, arms) for block, arms in lacking if arms]

    def _logged(self) -> dict[Key, PairedRun]:
        """The log's records of this point, the last of each arm and block."""
        if self.log is None:
            return {}
        rows = read_jsonl(self.log)
        records = []
        for number, row in enumerate(rows, 1):
            with taken_apart(f"{self.log}, line {number}"):
                if row.get("point") == self.point and "method" in row:
                    records.append(PairedRun.model_validate(row, strict=True))
        return {_key_of(record): record for record in records}

    def warm_up(self, arms: Sequence[Arm], reporter: Reporter) -> None:
        """The baseline and ``arms`` once, at full length on the longest item, so that nothing grows while timed."""
        self.workload.speculating.reserve(_positions(self.longest))
        for arm in [self._baseline, *arms]:
            try:
                arm.decode(shortened(self.longest, _WARM_UP_TOKENS))
            except RivalError as error:
                self._leave_out(error, reporter)

    def measure(self, block: Block, arms: Sequence[Arm], reporter: Reporter) -> None:
        """One block with those of ``arms`` that can run and are not hopelessly slow, appended to the log.

        Where a rival fails, all of it again without that one.
        """
        promising = [arm for arm in arms if not (arm.by_transformers and self._is_hopeless(arm, reporter))]
        while competing := [arm for arm in promising if arm.id not in self.unavailable]:
            try:
                self._keep(self._measured(block, competing))
            except RivalError as error:
                self._leave_out(error, reporter)
            else:
                return

    def _measured(self, block: Block, arms: Sequence[Arm]) -> list[PairedRun]:
        def measure() -> list[PairedRun]:
            return measure_block(self.workload, self._baseline, arms, block, self.check)

        return measure() if self.plain_limit is None else self.plain_limit.beside(measure)

    def _is_hopeless(self, arm: Arm, reporter: Reporter) -> bool:
        if arm.id in self._given_up:
            return True
        usual, runs = (
            {key[1:]: record.candidate.total_seconds for key, record in self._records.items() if key[0] == arm_id}
            for arm_id in (GENERATE, arm.id)
        )
        compared = [seconds > _HOPELESS * usual[block] for block, seconds in runs.items() if block in usual]
        if len(compared) < _ENOUGH_PROMPTS or not all(compared):
            return False
        self._given_up.add(arm.id)
        reporter.notice(
            f"{arm.id} took more than {_HOPELESS:g} times as long as model.generate on each of {len(compared)} "
            "prompts; it is not measured on more"
        )
        return True

    def _keep(self, measured: Sequence[PairedRun]) -> None:
        """The records with the marks of this contest, here and in the log."""
        marks = {"session": self.session, "point": self.point}
        records = [record.model_copy(update=marks) for record in measured]
        if self.log is not None:
            append_jsonl(self.log, *(record.to_dict() for record in records))
        self._records.update({_key_of(record): record for record in records})

    def _leave_out(self, error: RivalError, reporter: Reporter) -> None:
        self.unavailable[error.arm_id] = str(error)
        reporter.notice(f"{error.arm_id} is left out: {error}")
        if self.log is not None:
            append_jsonl(self.log, {"left_out": error.arm_id, "reason": str(error), "session": self.session})


def run_together(contests: Sequence[Contest], reporter: Reporter) -> list[list[PairedRun]]:
    """Measure what the contests' logs lack, blocks interleaved: so a drift of the machine meets all contests alike.

    Which contest comes first turns from block to block. Returns each contest's records, logged ones included.
    Raises `MeasurementInterrupted` on Ctrl-C.
    """
    missing = [contest.missing() for contest in contests]
    pending = _in_turns(missing)
    total = sum(len(contest.sequence) for contest in contests)
    done = total - len(pending)
    try:
        _warm_up(contests, missing, reporter)
        for number, block, arms in pending:
            contest = contests[number]
            if contest.limit is not None and contest.limit.is_up(block):
                continue
            reporter.progress(Progress(done, total, detail=_detail(contest, block)))
            contest.measure(block, arms, reporter)
            done += 1
    except KeyboardInterrupt:
        raise MeasurementInterrupted(_how_far(done, total, contests[0].log)) from None
    reporter.progress(Progress(done, total))
    return [contest.runs for contest in contests]


def on_common_prompts(runs: Sequence[PairedRun]) -> list[PairedRun]:
    """Those of the ``runs`` whose prompt every arm among them has."""
    prompts_of: dict[str, set[str]] = {}
    for run in runs:
        prompts_of.setdefault(run.method, set()).add(run.prompt_hash)
    common = set.intersection(*prompts_of.values()) if prompts_of else set()
    return [run for run in runs if run.prompt_hash in common]


def _in_turns(missing: Sequence[Sequence[tuple[Block, list[Arm]]]]) -> list[tuple[int, Block, list[Arm]]]:
    """All blocks as (contest's number, block, arms): by block, the contests' order turning with it."""
    everything = [(number, block, arms) for number, of_contest in enumerate(missing) for block, arms in of_contest]
    numbers = range(len(missing))
    return sorted(everything, key=lambda entry: (entry[1].index, turned(numbers, entry[1].index).index(entry[0])))


def _warm_up(
    contests: Sequence[Contest], missing: Sequence[Sequence[tuple[Block, list[Arm]]]], reporter: Reporter
) -> None:
    """Every arm that is still to be measured; the longest contest first, so that the cache grows once."""
    for contest, of_contest in sorted(
        zip(contests, missing, strict=True), key=lambda entry: -_positions(entry[0].longest)
    ):
        wanted = {arm.id for _, arms in of_contest for arm in arms}
        if wanted:
            contest.warm_up([arm for arm in contest.arms if arm.id in wanted], reporter)


def _how_far(done: int, total: int, log: Path | None) -> str:
    if log is None:
        return f"interrupted after {done} of {total} blocks; nothing was kept, `out` FILE makes a bench resumable"
    return f"interrupted after {done} of {total} blocks, which {log} keeps; run the same command to resume"


def _detail(contest: Contest, block: Block) -> str:
    return block.item.id if contest.point is None else f"{contest.point:g} · {block.item.id}"


def _positions(item: WorkItem) -> int:
    return len(item.tokens) + item.limits.max_new_tokens


def _key(arm: Arm, block: Block) -> Key:
    return arm.id, block.item.id, block.item.prompt.hash, block.round


def _key_of(record: PairedRun) -> Key:
    return record.method, record.prompt_id, record.prompt_hash, record.round
