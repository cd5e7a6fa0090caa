"""Whether an engine serves a model: the difference between what the model's plan needs and what the engine has."""

from __future__ import annotations

from transformers import PreTrainedModel

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.bound import bind
from selfspec_tune.plans import DecoderPlan, Feature, features


def unserved_reason(model: PreTrainedModel, serves: frozenset[Feature], engine: str = "our own loops") -> str | None:
    """Why an engine that ``serves`` these features cannot run a model; None where it can.

    In words that complete "cannot serve it: ", of binding first. The model may be on torch's meta device.
    """
    try:
        lacking = missing(bind(model).plan, serves)
    except UnsupportedModelError as error:
        return str(error)
    return lack(lacking, engine) if lacking else None


def missing(plan: DecoderPlan, serves: frozenset[Feature]) -> tuple[Feature, ...]:
    """What ``plan`` needs and an engine that ``serves`` these features lacks, in the order of `Feature`."""
    needed = features(plan)
    return tuple(feature for feature in Feature if feature in needed - serves)


def lack(lacking: tuple[Feature, ...], engine: str) -> str:
    """What an engine lacks, in words, as in "the native kernels have no LayerNorm and no GELU"."""
    *others, last = (f"no {feature}" for feature in lacking)
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"{engine} have {listed}"
