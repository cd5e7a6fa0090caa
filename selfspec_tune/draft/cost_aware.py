"""The cost-aware policy: draft while a token's expected gain exceeds its cost, and never lose.

Drafting is an optimal stopping problem of a ratio, tokens over time. Where tokens are to
be had at ``rate`` a plain step, one more drafted token is worth having if

    P(all before it accepted) · P(it is accepted)  >  rate · (what drafting and verifying it costs)

with the rate that the policy itself achieves, at least plain decoding's 1: the condition
under which a ratio is largest (Dinkelbach 1967). By the same rate, tokens found in the context,
the model's drafts or a plain step are taken: whichever gives most tokens beyond what its time
would give anyway. All times here are in plain steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence

from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.policy import CONFIDENCE_EDGES, PLAIN, AcceptancePrior, DraftPolicy, Plan
from selfspec_tune.draft.rounds import Round, Source
from selfspec_tune.draft.source import DraftSource

# Constants tuned on simulated texts (tests/policy_simulator.py); the outcome hardly depends on them.
_CONFIDENCE = {"strength": 6.0, "memory": 0.98}
_POSITION = {"strength": 5.0, "memory": 0.93}
_MATCH = {"strength": 2.0, "memory": 0.9}
# A draft of which nothing is known, and how much surer a token is whose predecessor was right.
_UNKNOWN_MEAN, _SURER = 0.7, 0.1
# Lengths of a match, grown by the tokens accepted after it, and the acceptance of the next one at first.
_MATCH_EDGES = (2, 3, 4, 6, 9, 14)
_MATCH_PRIORS = (0.2, 0.4, 0.5, 0.65, 0.8, 0.9, 0.95)
# A token must promise this much more than it costs: estimates err, and a stop costs less than a wrong draft.
_MARGIN = 1.1
# The whole credit (and up to this much more of it) is granted where the first guess is a gain of so much.
_CLEAR_GAIN, _MOST_CREDIT = 0.25, 1.3
_FOUND_CREDIT = 0.25  # at least, with a source: its tokens cost next to nothing
_RATE = {"strength": 2.0, "memory": 0.8}
_DRAFTING = {"strength": 3.0, "memory": 0.9}
# Rounds without the model before it is tried again; doubled each time that it still looks bad.
_FIRST_PAUSE, _LONGEST_PAUSE = 10, 64


class RunningMean:
    """A mean that starts from a prior worth ``strength`` observations and forgets old ones.

    Each observation first shrinks the weight of those before it, and of the prior, by
    ``memory``, so that about 1 / (1 - memory) of them count.
    """

    __slots__ = ("_memory", "_prior", "_strength", "_sum", "_weight")

    def __init__(self, prior: float, *, strength: float, memory: float) -> None:
        self._prior = prior
        self._strength = strength
        self._memory = memory
        self._sum = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The estimate."""
        return self.around(self._prior)

    def around(self, prior: float) -> float:
        """The estimate from another prior of the same strength."""
        return (self._strength * prior + self._sum) / (self._strength + self._weight)

    def add(self, value: float) -> None:
        """Observe ``value``."""
        self._strength *= self._memory
        self._sum = self._memory * self._sum + value
        self._weight = self._memory * self._weight + 1.0


class ModelAcceptance:
    """Of tokens that the model drafted: by how sure it was once drafted, by position before.

    ``first`` is the acceptance of a round's first token, ``following`` that of a token
    after an accepted one.
    """

    def __init__(self, prior: AcceptancePrior | None) -> None:
        mean = _UNKNOWN_MEAN if prior is None else prior.mean
        self._prior = None if prior is None else prior.rates
        self._bins = [RunningMean(0.0, **_CONFIDENCE) for _ in range(len(CONFIDENCE_EDGES) + 1)]
        self.first = RunningMean(mean, **_POSITION)
        self.following = RunningMean(min(mean + _SURER, (1.0 + mean) / 2), **_POSITION)

    def calibrated(self, confidence: float) -> float:
        """Acceptance of a token drafted at this probability, or lead."""
        index = bisect_right(CONFIDENCE_EDGES, confidence)
        return self._bins[index].around(confidence if self._prior is None else self._prior[index])

    def observe(self, confidences: Sequence[float], accepted: int) -> None:
        """Learn from a round; tokens after the first rejected one tell nothing."""
        for position, confidence in enumerate(confidences[: accepted + 1]):
            outcome = float(position < accepted)
            self._bins[bisect_right(CONFIDENCE_EDGES, confidence)].add(outcome)
            (self.following if position else self.first).add(outcome)


class FoundAcceptance:
    """Of tokens that a source found, by the length of the match before them."""

    def __init__(self) -> None:
        self._bins = [RunningMean(prior, **_MATCH) for prior in _MATCH_PRIORS]

    def after(self, match_length: int) -> float:
        """Acceptance of a token after so long a match."""
        return self._bins[bisect_right(_MATCH_EDGES, match_length)].value

    def observe(self, match_length: int, agreed: int, seen: int) -> None:
        """Of the first ``seen`` tokens found after a match, ``agreed`` were right before the first wrong one."""
        for position in range(seen):
            index = bisect_right(_MATCH_EDGES, match_length + position)
            self._bins[index].add(float(position < agreed))


class Ledger:
    """Predicted time spent, against what plain decoding would have taken for as many tokens.

    In plain steps. ``max_loss`` bounds what may be lost in the long run as a share of the
    time; ``credit`` is what may be lost beyond it in all, so that a generation can find
    out what its drafts are worth.
    """

    def __init__(self, max_loss: float, credit: float) -> None:
        self._scale = 1.0 / (1.0 - max_loss)
        self._credit = credit
        self.spent = 0.0
        self.tokens = 0

    @property
    def stake(self) -> float:
        """What the next round may cost beyond a plain step if none of its drafts is accepted."""
        return (self.tokens + 1) * self._scale + self._credit - self.spent - 1.0

    def book(self, cost: float, tokens: int) -> None:
        """A round that took ``cost`` and gave ``tokens``."""
        self.spent += cost
        self.tokens += tokens


class CostAwareState:
    """The cost-aware policy within one generation; see `PolicyState`."""

    needs_probability = True

    def __init__(
        self, policy: DraftPolicy, costs: StepCosts, *, sources: Sequence[DraftSource] = (), model_drafts: bool = True
    ) -> None:
        self.uses_lead = policy.prior is None or policy.prior.by_lead
        self._most = policy.max_draft_tokens if model_drafts else 0
        longest = max([self._most, *(source.max_tokens for source in sources)])
        self._step, self._cold, self._guess = (
            seconds / costs.decode for seconds in (costs.draft, costs.cold, costs.guess)
        )
        self._verify = [1.0, *(costs.verification(k) / costs.decode for k in range(1, longest + 1))]
        self._model = ModelAcceptance(policy.prior)
        self._by_source: dict[str, FoundAcceptance] = defaultdict(FoundAcceptance)
        self._each = RunningMean(self._step, **_DRAFTING)  # time of a drafted token, a round's first step apart
        promise = self._model_rate(self._most)
        self._tokens, self._time = RunningMean(promise, **_RATE), RunningMean(1.0, **_RATE)
        self._ledger = Ledger(policy.max_loss, policy.credit * _share_of_credit(promise, has_source=bool(sources)))
        self._pause, self._paused, self._is_trying = _FIRST_PAUSE, 0, False
        self._plan = PLAIN
        self._source: str = Source.PLAIN
        self._found = self._by_source[Source.PLAIN]
        self._num_found = self._match_length = 0
        self._confidences: list[float] = []
        self._survival = 1.0

    def begin(self, room: int, num_found: int = 0, match_length: int = 0, source: str = Source.PLAIN) -> Plan:
        self._num_found, self._match_length = num_found, match_length
        self._source, self._found = source, self._by_source[source]
        self._confidences.clear()
        self._survival = 1.0
        self._plan = self._choose(room)
        return self._plan

    def wants_more(self, num_drafted: int, probability: float, num_ahead: int = 0) -> bool:
        self._confidences.append(probability)
        self._survival *= self._model.calibrated(probability)
        if num_drafted >= self._plan.num_tokens or not self._may_draft(num_drafted + 1):
            return False
        price = _MARGIN * self._rate
        before = self._model_cost(num_drafted)
        gain, chance = 0.0, self._survival
        # Where the first token more does not pay, it may still open the way to cheaper ones.
        for longer in range(num_drafted + 1, self._plan.num_tokens + 1):
            chance *= self._model.following.value
            gain += chance
            saved = min(num_ahead, longer - num_drafted) * self._each.value
            if gain > price * (self._model_cost(longer) - before - saved):
                return True
        return False

    def num_guesses(self, num_found: int, match_length: int, source: str = Source.PLAIN) -> int:
        """As many as make a pass's tokens cheapest: its own, and those found that are what the draft would say."""
        acceptance, chance = self._by_source[source], 1.0
        tokens, cost = 1.0, self._step
        for number in range(num_found):
            chance *= acceptance.after(match_length + number)
            if chance * cost <= self._guess * tokens:
                return number
            tokens += chance
            cost += self._guess
        return num_found

    def update(self, round_: Round, agreed: int = 0) -> None:
        accepted, is_model = round_.num_accepted, self._plan.source is Source.MODEL
        guessing = (round_.num_guesses or 0) * self._guess
        drafting = round_.draft_passes * self._step + guessing if is_model else 0.0
        cost = self._verify[round_.num_drafted] + drafting + (self._cold if is_model else 0.0)
        self._ledger.book(cost, accepted + 1)
        # Whatever was decoded shows what the found tokens would have been worth.
        seen = min(self._num_found, agreed + 1, accepted + 1)
        self._found.observe(self._match_length, agreed, seen)
        if is_model or self._plan is PLAIN:
            self._tokens.add(accepted + 1.0)
            self._time.add(cost)
        if is_model:
            self._model.observe(self._confidences, accepted)
            self._each.add(drafting / max(round_.num_drafted, 1))
            self._note_trial()

    @property
    def _rate(self) -> float:
        """Tokens a plain step that new text gives lately, by drafting with the model or plainly."""
        return max(1.0, self._tokens.value / self._time.value)

    def _choose(self, room: int) -> Plan:
        self._is_trying = False
        most = min(self._most, room)
        length, gain = self._best_found(min(self._num_found, room))
        if length and gain >= self._model_gain(most):
            return Plan(self._source, length)
        if room < 1 or not self._most or not self._may_draft(1):
            return PLAIN
        if self._model_rate(most) <= 1.0:
            self._paused += 1
            if self._paused < self._pause:
                return PLAIN
            self._is_trying = True
        return Plan(Source.MODEL, most)

    def _note_trial(self) -> None:
        """After a round of the model's: when to try it again if it looks bad."""
        self._paused = 0
        if self._model_rate(self._most) > 1.0:
            self._pause = _FIRST_PAUSE
        elif self._is_trying:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _model_cost(self, num_drafted: int) -> float:
        """A round that drafts so many tokens, each as fast as such tokens came lately."""
        return self._cold + num_drafted * self._each.value + self._verify[num_drafted]

    def _may_draft(self, num_drafted: int) -> bool:
        """Whether the ledger bears a round of so many tokens of the model's, all rejected."""
        return self._model_cost(num_drafted) - 1.0 <= self._ledger.stake

    def _model_rate(self, most: int) -> float:
        """Tokens a plain step that the model's drafts promise at the best length up to ``most``; 0 without any."""
        return max((tokens / cost for tokens, cost in self._model_rounds(most)), default=0.0)

    def _model_gain(self, most: int) -> float:
        """Tokens that they promise at the best length beyond what their time gives at `_rate`; at least 0."""
        rate = self._rate
        return max(0.0, max((tokens - rate * cost for tokens, cost in self._model_rounds(most)), default=0.0))

    def _model_rounds(self, most: int) -> Iterator[tuple[float, float]]:
        """Tokens that a round of the model's promises and its cost, at each length up to ``most``."""
        tokens, chance = 1.0, self._model.first.value
        for length in range(1, most + 1):
            tokens += chance
            chance *= self._model.following.value
            yield tokens, self._model_cost(length)

    def _best_found(self, most: int) -> tuple[int, float]:
        """How many of the found tokens to take, and the tokens that they promise beyond what their time gives."""
        rate, stake = self._rate, self._ledger.stake
        best_length, best_gain = 0, 0.0
        tokens = chance = 1.0
        for length in range(1, most + 1):
            cost = self._verify[length]
            if cost - 1.0 > stake:
                break
            chance *= self._found.after(self._match_length + length - 1)
            tokens += chance
            gain = tokens - rate * cost
            if not best_length or gain > best_gain:
                best_length, best_gain = length, gain
        return best_length, best_gain


def _share_of_credit(guess: float, *, has_source: bool) -> float:
    """More credit where the draft promises more at first: the generation may end before it could show."""
    share = min(max((guess - 1.0) / _CLEAR_GAIN, 0.0), _MOST_CREDIT)
    return max(share, _FOUND_CREDIT) if has_source else share
