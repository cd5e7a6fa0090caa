"""What a draft would have said at every position of a known text, without decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.penalty import NO_PENALTY
from selfspec_tune.engine.teacher_forcing.layerwise import LayerwiseScorer, StandaloneScorer, TokenExactScorer
from selfspec_tune.engine.teacher_forcing.reference import BlockScorer, StandaloneReferenceScorer
from selfspec_tune.engine.teacher_forcing.trace import DraftScorer, Trace
from selfspec_tune.engine.teacher_forcing.window import Window
from selfspec_tune.models import LoadedModel

__all__ = [
    "BlockScorer",
    "DraftScorer",
    "LayerwiseScorer",
    "StandaloneReferenceScorer",
    "StandaloneScorer",
    "TokenExactScorer",
    "Trace",
    "Window",
    "make_scorer",
]


def make_scorer(
    runner: Runner,
    loaded: LoadedModel,
    windows: Sequence[Window],
    *,
    standalone: bool = False,
    depths: int = 1,
    repetition_penalty: float = NO_PENALTY,
) -> DraftScorer:
    """The scorer of drafts that share the full model's cache, or of ``standalone`` ones that run by themselves.

    ``depths``: of the first, how many tokens of a draft are told apart, where the architecture allows it.
    ``repetition_penalty``: under which the text was decoded.
    """
    windows = [replace(window, repetition_penalty=repetition_penalty) for window in windows]
    if isinstance(runner, FastRunner):
        return StandaloneScorer(runner, windows) if standalone else TokenExactScorer(runner, windows, depths)
    return StandaloneReferenceScorer(loaded, windows) if standalone else BlockScorer(loaded, windows)
