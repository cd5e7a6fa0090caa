"""The decoding engine: runners, drafting, verification, sampling."""

from selfspec_tune.engine.decoding import Limits, autoregressive, self_speculative
from selfspec_tune.engine.generation import Generation
from selfspec_tune.engine.numerics import describe_numerics
from selfspec_tune.engine.probe import choose_runner
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.sampling import Sampler

__all__ = [
    "Generation",
    "Limits",
    "Runner",
    "Sampler",
    "autoregressive",
    "choose_runner",
    "describe_numerics",
    "self_speculative",
]
