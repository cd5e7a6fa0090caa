"""Whether an engine serves a model: the difference between what the model's plan needs and what the engine has."""

from __future__ import annotations

from transformers import PreTrainedModel

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.bound import bind
from selfspec_tune.plans import Feature, features


def unserved_reason(model: PreTrainedModel, serves: frozenset[Feature], engine: str = "our own loops") -> str | None:
    """Why an engine that ``serves`` these features cannot run a model; None where it can.

    In words that complete "cannot serve it: ", of binding first. The model may be on torch's meta device.
    """
    try:
        needed = features(bind(model).plan)
    except UnsupportedModelError as error:
        return str(error)
    missing = [feature for feature in Feature if feature in needed - serves]
    return f"{engine} have no {_listed(missing)}" if missing else None


def _listed(missing: list[Feature]) -> str:
    *others, last = missing
    return f"{', '.join(others)} and no {last}" if others else last
