"""What tests of the engine share: tiny models, policies, and a runner whose logits are read off tables."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from selfspec_tune.draft import Certainty, Draft, DraftPolicy, PolicyKind, Precision, Source
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import MOST_MARGIN, num_tokens
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, RawGeneration, Runner
from selfspec_tune.engine.known_ids import KnownIds
from selfspec_tune.engine.runner import Scores, Want, scored
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.errors import UsageError
from selfspec_tune.models import LoadedModel, load_model
from tests import kit

HAS_COMPILER = any(shutil.which(name) for name in ("clang", "gcc", "cc")) or find_spec("ziglang") is not None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")

RUNNERS: dict[str, Callable[[LoadedModel], Runner]] = {
    "reference": ReferenceRunner,
    "fast": FastRunner,
    "graphs": GraphedRunner,
    **({"native": NativeRunner} if HAS_COMPILER else {}),
}


def load(directory: Path, dtype: str = "float32") -> LoadedModel:
    return load_model(str(directory), dtype=dtype, device="cpu")


def llama(directory: Path, **settings: object) -> Path:
    """A Llama checkpoint whose configuration differs in ``settings`` from the kit's."""
    from transformers import LlamaConfig

    values: dict[str, object] = {
        "hidden_size": kit.HIDDEN,
        "intermediate_size": 2 * kit.HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 1024,
        "bos_token_id": kit.BOS,
        "eos_token_id": kit.EOS,
        "pad_token_id": kit.EOS,
    }
    return kit.save_random(LlamaConfig(**(values | settings)), directory)  # type: ignore[arg-type]


def of_type(directory: Path, model_type: str, **settings: object) -> LoadedModel:
    """A tiny model of any Llama-like architecture."""
    from transformers import AutoConfig

    sizes: dict[str, object] = {
        "hidden_size": kit.HIDDEN,
        "intermediate_size": 2 * kit.HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "pad_token_id": kit.EOS,
        "bos_token_id": kit.BOS,
        "eos_token_id": kit.EOS,
    }
    return load(kit.save_random(AutoConfig.for_model(model_type, **(sizes | settings)), directory))


def prompt_tokens(length: int, seed: int = 0, vocabulary: int = 128) -> list[int]:
    """Token ids without the special ones."""
    return Random(seed).choices(range(len(kit.SPECIAL_TOKENS), vocabulary), k=length)


# Cheap drafts and generous credit: even in short answers a cost-aware policy drafts from every source.
STEPS = StepCosts(decode=1.0, draft=0.1, verify=tuple(1 + 0.02 * k for k in range(9)))


def policies(max_draft_tokens: int, exit_threshold: float) -> list[DraftPolicy]:
    """One policy of each rule; the adaptive one moves its threshold far enough to matter in a short answer."""
    strides = {"step": 0.2, "acceptance_momentum": 0.3, "threshold_momentum": 0.4}
    return [
        DraftPolicy(PolicyKind.FIXED, max_draft_tokens, exit_threshold),
        DraftPolicy(PolicyKind.THRESHOLD, max_draft_tokens, exit_threshold),
        DraftPolicy(PolicyKind.ADAPTIVE, max_draft_tokens, exit_threshold, **strides),
    ]


def every_policy(max_draft_tokens: int, exit_threshold: float) -> list[DraftPolicy]:
    """One policy of each kind; decoding with the last one needs `STEPS`."""
    cost_aware = DraftPolicy(PolicyKind.COST_AWARE, max_draft_tokens, credit=4.0)
    return [*policies(max_draft_tokens, exit_threshold), cost_aware]


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Within it torch, and a runner whose cache is made then, has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode(runner: Runner, token: int) -> Tensor:
    """Logits [vocabulary] of a plain step."""
    return runner.forward([token]).logits[0]


def draft_step(runner: Runner, token: int) -> Tensor:
    """Logits [draft vocabulary] of a draft step."""
    return runner.forward([token], is_draft=True).logits[0]


def certainty_by(logits: Tensor) -> Certainty:
    """How sure logits [vocabulary] are of their highest, computed in float64 and by other steps than the engines'."""
    probabilities, logits = logits.double().softmax(-1), logits.double().sort().values
    entropy = -sum(share * math.log(share) for share in probabilities.tolist() if share > 0)
    margin = float(logits[-1] - logits[-2]) if len(logits) > 1 else MOST_MARGIN
    return Certainty(float(probabilities.max()), min(margin, MOST_MARGIN), entropy)


class Altered:
    """A runner, named after it among the bases, whose logits `alter` changes, whatever is wanted of a pass."""

    def forward(self, tokens: Sequence[int], *, want: Want = Want.LOGITS, **how: bool) -> Scores:
        logits = super().forward(tokens, **how).logits.clone()  # type: ignore[misc]
        altered = self.alter(logits, tokens, kind_of(tokens, **how))
        return scored(altered, want, self, tokens, is_draft=how.get("is_draft", False))

    def alter(self, logits: Tensor, tokens: Sequence[int], kind: str) -> Tensor:
        raise NotImplementedError


def kind_of(tokens: Sequence[int], *, is_draft: bool = False, last_only: bool = False, **_: object) -> str:
    """What a pass is: a prefill, a draft, a step or a verification."""
    if last_only:
        return "prefill"
    if is_draft:
        return "draft"
    return "step" if len(tokens) == 1 else "verification"


def hf_generate(loaded: LoadedModel, prompt: Sequence[int], limits: Limits) -> list[int]:
    """The new tokens of a greedy ``model.generate``."""
    never = loaded.model.get_input_embeddings().weight.shape[0]  # else the checkpoint's own would be filled in
    input_ids = torch.tensor([list(prompt)])
    output = loaded.model.generate(  # type: ignore[operator]
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=limits.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(limits.eos_token_ids) or [never],
        pad_token_id=0,
    )
    return [int(token) for token in output[0, len(prompt) :]]


def check_record(generation: RawGeneration, limits: Limits, draft: Draft) -> None:
    """The raw record of a self-speculative generation is consistent with its tokens."""
    rounds, tokens = generation.rounds, generation.tokens
    most = {
        Source.PLAIN: 0,
        **{source.name: source.max_tokens for source in draft.sources},
        Source.MODEL: draft.policy.max_draft_tokens if draft.model_drafts else 0,
    }
    for one in rounds:
        assert 0 <= one.num_accepted <= one.num_drafted <= most[one.source or ""]
        assert (one.num_drafted == 0) == (one.source == Source.PLAIN)
        by_model = one.source == Source.MODEL
        assert len(one.certainties) == (one.num_drafted if by_model else 0)
        assert (one.match_length > 0) == (one.source in (source.name for source in draft.sources))
        assert one.num_passes in (range(1, max(one.num_drafted, most[Source.MODEL]) + 1) if by_model else (0,))
    # Each round adds its accepted tokens and one more; the last one's is dropped after a drafted end of sequence.
    dropped = num_tokens(rounds) - (len(tokens) - 1)
    assert dropped in ({0, 1} if generation.stop_reason == "eos" else {0})
    assert (generation.stop_reason == "eos") == (tokens[-1] in limits.eos_token_ids)
    assert not any(token in limits.eos_token_ids for token in tokens[:-1])
    assert len(tokens) == limits.max_new_tokens or generation.stop_reason == "eos"
    check_times(generation)


def check_times(generation: RawGeneration) -> None:
    assert generation.prefill_seconds >= 0
    assert generation.draft_seconds >= 0
    assert generation.verify_seconds >= 0
    assert generation.decode_seconds + 1e-6 >= generation.draft_seconds + generation.verify_seconds
    assert generation.total_seconds == generation.prefill_seconds + generation.decode_seconds


def by_search(tokens: Sequence[int], lookup: NgramLookup) -> tuple[int, ...] | None:
    """What a lookup finds after ``tokens``, by looking at every place of them, the latest first."""
    for length in range(lookup.max_match, lookup.min_match - 1, -1):
        suffix = list(tokens[-length:])
        for end in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[end - length : end]) == suffix:
                copied = list(tokens)
                for offset in range(lookup.max_tokens):
                    copied.append(copied[end + offset])
                return tuple(copied[len(tokens) :])
    return None


class TableRunner:
    """A `Runner` without a model: ``target`` and ``draft`` [vocabulary, vocabulary, vocabulary] hold
    the logits after each pair of tokens (a lone token follows token 0).

    ``verified`` keeps the tokens of every verification, ``draft_passes`` those of every draft pass over several.
    """

    name = about = "table"
    num_layers = 1

    def __init__(self, target: Tensor, draft: Tensor | None = None) -> None:
        self._target = target
        self._draft = target if draft is None else draft
        self.vocabulary_size = target.shape[-1]
        self._known = KnownIds(Draft(SkipSet.empty(1)), self.vocabulary_size, target.device)
        self.tokens: list[int] = []
        self.verified: list[list[int]] = []
        self.draft_passes: list[list[int]] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def capacity(self) -> int:
        return 1 << 20

    def reserve(self, capacity: int) -> None: ...

    def synchronize(self) -> None: ...

    def set_draft(self, draft: Draft) -> None:
        self._known = KnownIds(draft, self.vocabulary_size, self._target.device)

    def know(self, tokens: Iterable[int]) -> None:
        self._known.add(tokens)

    @property
    def draft_ids(self) -> Tensor | None:
        return self._known.ids

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        if len(tokens) > 1 and not last_only:
            (self.draft_passes if is_draft else self.verified).append(list(tokens))
        rows = [self.row_after(token, is_draft=is_draft) for token in tokens]
        logits = torch.stack(rows[-1:] if last_only else rows)
        return scored(self._known.among(logits) if is_draft else logits, want, self, tokens, is_draft=is_draft)

    def row_after(self, token: int, *, is_draft: bool) -> Tensor:
        """The logits after one more token."""
        self.tokens.append(token)
        before, last = [0, *self.tokens][-2:]
        return (self._draft if is_draft else self._target)[before, last]

    def rewind(self, length: int) -> None:
        del self.tokens[length:]


class ClockedRunner(TableRunner):
    """A `TableRunner` on a clock of its own, `now`, that moves by what each call costs and by nothing else.

    One attention costs ``attention`` and ``cache`` for every position before it, an MLP ``mlp``, the
    head ``row`` a token id, a call ``call`` besides; each further token of a full pass ``token`` of
    its first, of a draft pass ``guess`` of it. A draft step after a full pass takes ``cold`` seconds
    more, and so does a full pass after a draft step. ``low`` is the share that int8 sub-layers and
    heads cost; None: they are refused.
    """

    name = "clocked"

    def __init__(
        self,
        num_layers: int = 6,
        *,
        vocabulary: int = 32,
        attention: float = 0.02,
        mlp: float = 0.05,
        row: float = 0.001,
        call: float = 0.01,
        cache: float = 1e-5,
        token: float = 0.1,
        guess: float = 0.0,
        cold: float = 0.0,
        low: float | None = None,
    ) -> None:
        super().__init__(chain(vocabulary, 5.0))
        self.num_layers = num_layers
        self._parts = (attention, mlp, row, call, cache)
        self._token, self._low, self._guess, self._cold = token, low, guess, cold
        self._was_draft = False
        self._chosen = Draft(SkipSet.empty(num_layers))
        self.now = 0.0
        self.longest = 0

    def clock(self) -> float:
        return self.now

    def set_draft(self, draft: Draft) -> None:
        if not draft.precision.is_same and self._low is None:
            raise UsageError(f"the clocked runner cannot draft at {draft.precision}")
        super().set_draft(draft)
        self._chosen = draft

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        if last_only:
            self.now += len(tokens) * self._token * self.step_seconds()
            self.longest = max(self.longest, len(tokens))
        else:
            step = self.step_seconds(self._chosen if is_draft else None)
            more = self._guess if is_draft else self._token
            self._spend(step * (1 + more * (len(tokens) - 1)), is_draft=is_draft)
        return super().forward(tokens, is_draft=is_draft, want=want, last_only=last_only)

    def row_after(self, token: int, *, is_draft: bool) -> Tensor:
        self.tokens.append(token)
        return self._target[0, token]

    def _spend(self, seconds: float, *, is_draft: bool) -> None:
        self.now += seconds + self._cold * (is_draft is not self._was_draft)
        self._was_draft = is_draft

    def step_seconds(self, draft: Draft | None = None, length: int | None = None) -> float:
        """One token through the kept sub-layers after ``length`` (default: the cached) positions."""
        draft = draft or Draft(SkipSet.empty(self.num_layers))
        attention, mlp, row, call, cache = self._parts
        reading = cache * (self.length if length is None else length)
        seconds = call + self._share(draft.precision.head) * row * (draft.vocabulary or self.vocabulary_size)
        for index, skipped in enumerate(draft.skip_set.to_flags()):
            if not skipped:
                share = self._share(draft.precision.of(index))
                seconds += share * mlp if index % 2 else share * attention + reading
        return seconds

    def _share(self, precision: Precision) -> float:
        return 1.0 if precision is Precision.SAME else self._low or 1.0


def chain(vocabulary: int, sharpness: float | Iterable[float], step: int = 1) -> Tensor:
    """A table in which ``token + step`` follows ``token``, with a logit of ``sharpness`` over zeros elsewhere."""
    each = [sharpness] * vocabulary if isinstance(sharpness, int | float) else list(sharpness)
    table = torch.zeros(vocabulary, vocabulary, vocabulary)
    for token, logit in enumerate(each):
        table[:, token, (token + step) % vocabulary] = logit
    return table
