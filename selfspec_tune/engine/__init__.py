"""The decoding engine: runners, drafting, verification, sampling."""

from selfspec_tune.engine.choice import choose_runner
from selfspec_tune.engine.decoding import Limits, RawGeneration, autoregressive, self_speculative
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.sampling import Sampler
from selfspec_tune.engine.torch_settings import describe_numerics

__all__ = [
    "Limits",
    "RawGeneration",
    "Runner",
    "Sampler",
    "autoregressive",
    "choose_runner",
    "describe_numerics",
    "self_speculative",
]
