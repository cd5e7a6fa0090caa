"""What the stages of a search take, by what the engine's steps cost: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from selfspec_tune.search import budget
from selfspec_tune.search.budget import FEWEST_SELECTION, Schedule, reductions
from selfspec_tune.search.stages.calibration import STANDALONE, Text, Texts
from selfspec_tune.search.stages.importance import FEWEST_SAMPLES

_SELECTION_SHARE = 1 / 8  # of the whole time that finalists may take
_NUM_VOCABULARIES = 4  # tried on the first text
_COST_STEPS = 250  # plain steps that the cost model takes at least
_FLOOR_ITEMS, _FLOOR_TOKENS = 4, 24  # that tell what a numerical tie is
_WARM_UP_TOKENS = 8
_KEPT = 0.92  # of the time is planned with: machines are busier at times, and drafts may be slow


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the full model here: a plain step, a token of a prefill, and a row of a text that a draft predicts."""

    decode_step: float
    prefill_token: float
    row: float = 0.0

    def generation(self, prompt_tokens: float, new_tokens: float) -> float:
        """One plain generation."""
        return prompt_tokens * self.prefill_token + new_tokens * self.decode_step

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a search could make use of.

    Attributes:
        calibration, selection, test: prompts of each split.
        prompt_tokens: of a prompt, in the mean.
        max_new_tokens: of an answer.
        most_trials: that were asked for.
        texts: what candidates are predicted on; None where none is.
        num_passes: of the importance text.
        computes_prompts: whether a draft computes the prompts too, which else come from the full model.
    """

    calibration: int
    selection: int
    test: int
    prompt_tokens: float
    max_new_tokens: int
    most_trials: int = budget.DEFAULT_TRIALS
    texts: Texts | None = None
    num_passes: int = 0
    computes_prompts: bool = False


@dataclass(frozen=True, slots=True)
class Estimates:
    """Seconds of every stage; a candidate is taken to be as slow as plain decoding.

    ``earlier``: by which the search was begun, where it goes on: whatever is planned keeps what was read by that.
    """

    sizes: Sizes
    costs: Costs
    timeout_seconds: float | None = None
    earlier: Schedule | None = None

    def going_on_from(self, earlier: Schedule) -> Estimates:
        """For a search that was begun by ``earlier``."""
        return replace(self, sizes=replace(self.sizes, max_new_tokens=earlier.max_new_tokens), earlier=earlier)

    def at_step(self, seconds: float) -> Estimates:
        """By a plain step that was timed more thoroughly."""
        return replace(self, costs=replace(self.costs, decode_step=seconds))

    def full(self) -> Schedule:
        """All that a search does where time allows; the finalists take no more than an eighth of it."""
        sizes, timeout = self.sizes, self.timeout_seconds
        whole = self._going_on(self._whole())
        if timeout is None:
            return whole
        each = self.finalists(replace(whole, num_selection=1))
        affordable = max(int(_SELECTION_SHARE * timeout / each), budget.NUM_SELECTION_ITEMS)
        return self._going_on(replace(whole, num_selection=min(sizes.selection, affordable)))

    def _whole(self) -> Schedule:
        sizes = self.sizes
        predicts = sizes.texts is not None
        return Schedule(
            max_new_tokens=sizes.max_new_tokens,
            num_calibration=sizes.calibration if predicts else min(sizes.calibration, budget.TRIAL_ITEMS),
            num_held_out=min(sizes.selection, budget.NUM_HELD_OUT) if predicts else 0,
            num_texts=len(sizes.texts.candidates) if sizes.texts else 0,
            num_trials=min(sizes.most_trials, budget.NUM_CANDIDATES),
            num_windows=budget.TRIAL_ITEMS,
            num_finalists=budget.NUM_FINALISTS,
            num_selection=sizes.selection,
            num_test=sizes.test,
            num_references=min(sizes.test, budget.NUM_REFERENCE_ITEMS),
        )

    def _going_on(self, schedule: Schedule) -> Schedule:
        return schedule if self.earlier is None else schedule.going_on_from(self.earlier)

    def fitting(self, seconds: float) -> Schedule | None:
        """As much of `full` as fits into ``seconds``; None where not even the least does."""
        each = map(self._going_on, reductions(self.full(), fewest_texts=self._fewest_texts))
        return next((one for one in each if self.total(one) <= _KEPT * seconds), None)

    def least_seconds(self) -> float:
        """The shortest time that holds the least that a search can do, within a twentieth."""
        *_, least = reductions(self.full(), fewest_texts=self._fewest_texts)
        seconds = 1.0
        while replace(self, timeout_seconds=seconds).total(least) > _KEPT * seconds:
            seconds *= 1.05
        return seconds

    @property
    def _fewest_texts(self) -> int:
        """A draft that stands alone must skip something, so it must be predicted."""
        return 1 if self.sizes.computes_prompts else 0

    def total(self, schedule: Schedule) -> float:
        """Seconds of all stages."""
        return sum(self.stages(schedule).values())

    def stages(self, schedule: Schedule) -> dict[str, float]:
        """Seconds by stage, in order."""
        return {
            "calibrate": self.answers(schedule, schedule.num_calibration + schedule.num_held_out),
            "importance": self.importance() if schedule.num_texts else 0.0,
            "proxy": self.cost_model() + self.proxy(schedule),
            "trials": self._numeric_floor() + schedule.num_trials * self.trial(schedule),
            "finalists": self.finalists(schedule),
            "test": self.test(schedule),
        }

    def reserved(self, schedule: Schedule) -> float:
        """What must be left when the trials end."""
        return self.finalists(schedule) + self.test(schedule)

    def answers(self, schedule: Schedule, number: int) -> float:
        """So many answers by the full model."""
        return number * self.costs.generation(self.sizes.prompt_tokens, schedule.max_new_tokens)

    def importance(self) -> float:
        """As many of the passes as its share of the time allows, and never fewer than tell anything."""
        if self.sizes.texts is None:
            return 0.0
        text = self.sizes.texts.importance
        most = budget.importance_seconds(self.timeout_seconds)
        scored = min(self._scoring(text, self.sizes.num_passes), max(self._scoring(text, FEWEST_SAMPLES), most))
        return self._opening([text]) + scored

    def cost_model(self) -> float:
        """Timing the engine's steps."""
        return max(budget.costs_seconds(self.timeout_seconds), _COST_STEPS * self.costs.decode_step)

    def proxy(self, schedule: Schedule) -> float:
        """Predictions in their least share of the time, and never fewer than tell anything; and reading their texts."""
        texts = self._texts(schedule)
        if not texts:
            return 0.0
        fewest = sum(self._scoring(text, budget.FEWEST_SCORED) for text in texts)
        return self.opening(schedule) + max(fewest, budget.proxy_seconds(self.timeout_seconds))

    def opening(self, schedule: Schedule) -> float:
        """Reading the texts that candidates are predicted on, and choosing the vocabulary on the first."""
        texts = self._texts(schedule)
        return self._opening(texts) + sum(self._scoring(text, _NUM_VOCABULARIES) for text in texts[:1])

    def trial(self, schedule: Schedule) -> float:
        """One trial: pairs of a short continuation each, in the middle of answers."""
        before = self.sizes.prompt_tokens + schedule.max_new_tokens / 2
        short = min(budget.TRIAL_TOKENS, schedule.max_new_tokens)
        return 2 * schedule.num_windows * self.costs.generation(before, short)

    def finalists(self, schedule: Schedule) -> float:
        """The finalists and plain decoding, side by side on selection prompts."""
        if schedule.num_finalists < 2:
            return 0.0
        short = min(budget.SELECTION_TOKENS, schedule.max_new_tokens)
        each = self.costs.generation(self.sizes.prompt_tokens, short)
        num_arms = 1 + schedule.num_finalists
        return schedule.num_selection * num_arms * each + self._warm_up(num_arms)

    def test(self, schedule: Schedule) -> float:
        """Pairs on the test prompts; on a few the A-A run, model.generate and the empty set too; and what follows."""
        whole = self.costs.generation(self.sizes.prompt_tokens, schedule.max_new_tokens)
        measured = (2 * schedule.num_test + 3.5 * schedule.num_references) * whole
        return measured + self._warm_up(num_arms=5) + self.conclusion()

    def conclusion(self) -> float:
        """What the winner would be worth where it cannot share the model's cache."""
        text = STANDALONE.held_out
        return 2 * text.num_windows * (self.sizes.prompt_tokens + text.length) * self.costs.prefill_token

    def finalists_within(self, schedule: Schedule, seconds: float) -> Schedule:
        """The schedule with as many finalists, then with them on as many prompts, as ``seconds`` allow."""
        few = [replace(schedule, num_finalists=n) for n in range(schedule.num_finalists, 1, -1)]
        least = few[-1] if few else schedule
        few += [replace(least, num_selection=n) for n in range(least.num_selection - 1, FEWEST_SELECTION - 1, -1)]
        fitting = (one for one in few if self.finalists(one) <= seconds)
        return next(fitting, replace(schedule, num_finalists=1))

    def _texts(self, schedule: Schedule) -> Sequence[Text]:
        return self.sizes.texts.candidates[: schedule.num_texts] if self.sizes.texts else ()

    def _opening(self, texts: Sequence[Text]) -> float:
        """Reading what comes before the windows of ``texts``."""
        before = self.sizes.prompt_tokens + self.sizes.max_new_tokens / 2
        return sum(text.num_windows for text in texts) * before * self.costs.prefill_token

    def _scoring(self, text: Text, number: int) -> float:
        """So many passes over ``text``."""
        prompts = text.num_windows * self.sizes.prompt_tokens if self.sizes.computes_prompts else 0.0
        return number * (text.num_rows + prompts) * self.costs.row

    def _warm_up(self, num_arms: int) -> float:
        return num_arms * self.costs.generation(self.sizes.prompt_tokens, _WARM_UP_TOKENS)

    def _numeric_floor(self) -> float:
        return _FLOOR_ITEMS * self.costs.generation(2 * self.sizes.prompt_tokens, _FLOOR_TOKENS)
