"""How a time limit is shared out, and what the stages will take."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from selfspec_tune.costs import StepCosts
from selfspec_tune.draft import Draft
from selfspec_tune.engine.costs import measure_step_costs
from selfspec_tune.errors import BudgetError
from selfspec_tune.search.setting import Setting
from selfspec_tune.skip_set import SkipSet

# Trials shorter than this measure how answers begin and noise; longer ones cost more than they tell.
TRIAL_TOKENS = 48
TRIAL_ITEMS = 8
SELECTION_TOKENS = 96
NUM_FINALISTS = 4
SELF_SD_TOKENS = 32  # of each of 8 prompts: as Self-SD's own search measures
SWIFT_TOKENS = 50  # of context, as SWIFT scores
NUM_SELECTION_ITEMS = 8  # at least, where there are so many; more where the time allows: few prompts overstate
NUM_REFERENCE_ITEMS = 8
NUM_HELD_OUT = 6  # selection prompts whose answers tell whether the search learns its own text by heart
DEFAULT_TRIALS = 40
WIDE_WINDOWS = 32  # of calibration text that the best few candidates are scored on
NUM_CANDIDATES = 12  # of those predicted, for whose trials time is kept; more are measured where there is more
_MOST_PROXY_SHARE = 0.3  # of the whole time that predictions may take: beyond it, they learn their text by heart
_OVERRUN = 1.25  # by which an estimate may be off before a time limit is refused


_MOST_COSTS_SECONDS = 25.0
_SELECTION_SHARE = 1 / 8  # of the whole time that finalists may take


class Clock:
    """Time since the command began, earlier interrupted runs of it included, against a limit."""

    def __init__(self, timeout_seconds: float | None, spent_before: float = 0.0) -> None:
        self._begun = monotonic() - spent_before
        self._timeout = timeout_seconds

    @property
    def elapsed(self) -> float:
        """Seconds spent on this search in all."""
        return monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self._timeout is None else self._timeout - self.elapsed


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of decoding by the full model on this machine."""

    decode_step: float
    prefill_token: float

    def generation(self, prompt_tokens: float, new_tokens: float) -> float:
        """One plain generation."""
        return prompt_tokens * self.prefill_token + new_tokens * self.decode_step


@dataclass(frozen=True, slots=True)
class Shares:
    """Seconds that each later stage needs; ``proxy`` and ``trials`` take what is left.

    ``selection`` is for ``num_selection`` prompts.
    """

    trial: float
    selection: float
    test: float
    num_selection: int

    @property
    def reserved(self) -> float:
        """What must be left when the trials end."""
        return self.selection + self.test


def estimate_shares(
    costs: Costs,
    *,
    prompt_tokens: float,
    max_new_tokens: int,
    num_selection: int,
    num_test: int,
    timeout_seconds: float | None = None,
) -> Shares:
    """Estimates from the cost of plain decoding; a candidate is taken to be as slow as the baseline."""
    window = costs.generation(prompt_tokens + max_new_tokens / 2, min(TRIAL_TOKENS, max_new_tokens))
    whole = costs.generation(prompt_tokens, max_new_tokens)
    short = costs.generation(prompt_tokens, min(SELECTION_TOKENS, max_new_tokens))
    finalists = (1 + NUM_FINALISTS) * short
    affordable = num_selection if timeout_seconds is None else int(_SELECTION_SHARE * timeout_seconds / finalists)
    num_selection = min(num_selection, max(affordable, NUM_SELECTION_ITEMS))
    return Shares(
        trial=TRIAL_ITEMS * 2 * window,
        selection=num_selection * finalists,
        num_selection=num_selection,
        # beside the pair, the A-A run, model.generate and the empty set on a few prompts
        test=num_test * 2 * whole + min(num_test, NUM_REFERENCE_ITEMS) * 3.5 * whole,
    )


def shares_of(setting: Setting, costs: StepCosts) -> Shares:
    """The shares of a search, from its measured steps."""
    # A prompt runs as one wide pass: cheaper a token than the widest verification timed.
    prefill_token = costs.verify[-1] / len(costs.verify) / 2
    return estimate_shares(
        Costs(costs.decode, prefill_token),
        prompt_tokens=setting.mean_prompt_tokens,
        max_new_tokens=setting.request.prompts.max_new_tokens,
        num_selection=len(setting.selection),
        num_test=len(setting.test),
        timeout_seconds=setting.request.timeout_seconds,
    )


def check_timeout(setting: Setting, elapsed: float = 0.0) -> float:
    """The seconds that candidates without decoding may take; ``elapsed``: seconds spent before.

    Raises `BudgetError` for a time limit that could not even hold the finalists and the test.
    """
    timeout, workload = setting.request.timeout_seconds, setting.workload
    if timeout is None:
        return proxy_seconds(None)
    context = setting.calibration[0].tokens
    whole = Draft(SkipSet.empty(workload.loaded.num_layers))
    limit = workload.loaded.context_length
    costs = measure_step_costs(workload.runner, context, whole, context_length=limit, repeats=2)
    shares = shares_of(setting, costs)
    before = proxy_seconds(timeout) + costs_seconds(timeout)
    least = elapsed + shares.reserved + shares.trial + before
    if least > _OVERRUN * timeout:
        raise BudgetError(
            f"--timeout {timeout:.0f}s is too short: one trial, the finalists and the test on "
            f"{len(setting.test)} prompts take about {least:.0f} s here. Raise it, or lower "
            "--num-prompts or --max-new-tokens."
        )
    return proxy_seconds(timeout, shares, elapsed)


def proxy_seconds(timeout_seconds: float | None, shares: Shares | None = None, elapsed: float = 0.0) -> float:
    """Time for candidates without decoding: what trials of the best of them leave, from a ninth to 30 % of all.

    Without ``shares`` the least. Two minutes where only trials are bounded.
    """
    if timeout_seconds is None:
        return 120.0
    least = timeout_seconds / 9
    if shares is None:
        return least
    spare = timeout_seconds - elapsed - shares.reserved - NUM_CANDIDATES * shares.trial
    return min(max(spare, least), _MOST_PROXY_SHARE * timeout_seconds)


def costs_seconds(timeout_seconds: float | None) -> float:
    """Time for measuring the cost model: a quarter of what candidates without decoding get, while that tells more."""
    return min(proxy_seconds(timeout_seconds) / 4, _MOST_COSTS_SECONDS)


def max_trials(trials: int | None, timeout_seconds: float | None) -> int:
    """Most trials to measure; only the time bounds them where only a time was given."""
    if trials is not None:
        return trials
    return DEFAULT_TRIALS if timeout_seconds is None else 10_000
