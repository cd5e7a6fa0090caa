"""At which numeric precision each kept sub-layer drafts.

Verification always runs at the model's own precision, so a cruder draft costs acceptance,
never exactness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from selfspec_tune.checks import only_known, shown
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.errors import SkipSetError, UsageError


class Precision(StrEnum):
    """Numeric precision of a sub-layer's weights while drafting; ``same`` is the model's own."""

    SAME = "same"
    INT8 = "int8"
    INT4 = "int4"


_FORM = "expected a form like 'int4', 'int4 head int8', or 'int8 attn 0-3 · mlp 2; int4 attn 4-9; head int8'"
_HEAD = re.compile(r"head\s+(\w+)", re.IGNORECASE)
_NAMED = re.compile(r"(\w+)\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DraftPrecision:
    """The precision of every sub-layer and of the output head.

    ``sublayers`` is in the order of `SkipSet.to_flags`: attention 0, MLP 0, attention 1, …;
    empty means that all are the same as the model's (and so it is stored when all are).
    What a sub-layer that the draft skips says here has no effect.
    """

    sublayers: tuple[Precision, ...] = ()
    head: Precision = Precision.SAME

    def __post_init__(self) -> None:
        if len(self.sublayers) % 2:
            raise UsageError(
                f"Draft precisions of {len(self.sublayers)} sub-layers; expected two for each layer (attention, MLP)."
            )
        if all(precision is Precision.SAME for precision in self.sublayers):
            object.__setattr__(self, "sublayers", ())

    @classmethod
    def uniform(cls, num_layers: int, precision: Precision, head: Precision = Precision.SAME) -> DraftPrecision:
        """Every sub-layer at ``precision``."""
        return cls((precision,) * (2 * num_layers), head)

    @classmethod
    def parse(cls, text: str, num_layers: int) -> DraftPrecision:
        """Read the text form, ``int4 head int8`` or ``int8 attn 0-3 · mlp 2; int4 attn 4-9; head int8``.

        Sub-layers that no part names stay the same. Raises `UsageError` saying what was not understood.
        """
        sublayers: list[Precision | None] = [None] * (2 * num_layers)
        head: Precision | None = None
        for part in text.split(";"):
            found = _HEAD.search(part)
            if found is not None:
                if head is not None:
                    raise UsageError(f"The draft precision {text!r} names the head twice; {_FORM}.")
                head = _precision(found[1], text)
                part = part[: found.start()] + part[found.end() :]
                if not part.strip():
                    continue
            precision, flags = _parse_part(part, text, num_layers)
            for index, chosen in enumerate(flags):
                if chosen and sublayers[index] is not None:
                    raise UsageError(f"The draft precision {text!r} names {SubLayerId.of(index)} twice; name it once.")
                if chosen:
                    sublayers[index] = precision
        return cls(tuple(precision or Precision.SAME for precision in sublayers), head or Precision.SAME)

    @classmethod
    def from_json(cls, value: Any, num_layers: int) -> DraftPrecision:
        """The inverse of `to_json`. Raises `UsageError`."""
        if isinstance(value, str):
            return cls.uniform(num_layers, _precision(value, value))
        named = only_known("precision", value, ("int8", "int4", "head"))
        sublayers = [Precision.SAME] * (2 * num_layers)
        for precision in (Precision.INT8, Precision.INT4):
            name = f"precision.{precision}"
            layers = only_known(name, named.get(precision.value, {}), ("attention", "mlp"))
            for kind in layers:
                if not isinstance(layers[kind], list | tuple):
                    raise UsageError(f"{name}.{kind} is {shown(layers[kind])}; expected a list of layer numbers.")
            chosen = SkipSet(num_layers, tuple(layers.get("attention", ())), tuple(layers.get("mlp", ())))
            for index in chosen.indices:
                if sublayers[index] is not Precision.SAME:
                    raise UsageError(f"precision names {SubLayerId.of(index)} twice; expected it once.")
                sublayers[index] = precision
        return cls(tuple(sublayers), _precision(named.get("head", "same"), str(value)))

    @property
    def is_same(self) -> bool:
        """Whether everything drafts at the model's own precision."""
        return not self.sublayers and self.head is Precision.SAME

    def of(self, index: int) -> Precision:
        """The precision of sub-layer ``index`` (2 i is the attention of layer i, 2 i + 1 its MLP)."""
        return self.sublayers[index] if self.sublayers else Precision.SAME

    def check(self, num_layers: int) -> None:
        """Raise `UsageError` unless this fits a model of ``num_layers`` layers."""
        if self.sublayers and len(self.sublayers) != 2 * num_layers:
            raise UsageError(
                f"Draft precisions for {len(self.sublayers) // 2} layers; the model has {num_layers}. "
                "Use those made for this model."
            )

    def __str__(self) -> str:
        head = "" if self.head is Precision.SAME else f"head {self.head.value}"
        kinds = set(self.sublayers)
        if len(kinds) <= 1:
            uniform = "".join(precision.value for precision in kinds)
            return " ".join(filter(None, (uniform, head))) or Precision.SAME.value
        groups = [f"{precision.value} {layers}" for precision, layers in self._groups()]
        return "; ".join(filter(None, (*groups, head)))

    def to_json(self) -> str | dict[str, Any]:
        """``"same"``, or an object with the layers of each lower precision and the head's."""
        if self.is_same:
            return Precision.SAME.value
        groups: dict[str, Any] = {precision.value: layers.to_dict() for precision, layers in self._groups()}
        return groups | ({} if self.head is Precision.SAME else {"head": self.head.value})

    def _groups(self) -> Iterator[tuple[Precision, SkipSet]]:
        """Each lower precision in use with the set of its sub-layers."""
        for precision in (Precision.INT8, Precision.INT4):
            flags = [other is precision for other in self.sublayers]
            if any(flags):
                yield precision, SkipSet.from_flags(flags)


def _parse_part(part: str, text: str, num_layers: int) -> tuple[Precision, tuple[bool, ...]]:
    """A precision, and which sub-layers it is for: all where none are named."""
    named = _NAMED.fullmatch(part.strip())
    if named is None:
        raise UsageError(f"Cannot read the draft precision {text!r}; {_FORM}.")
    precision = _precision(named[1], text)
    if not named[2]:
        return precision, (True,) * (2 * num_layers)
    try:
        return precision, SkipSet.parse(named[2], num_layers).to_flags()
    except SkipSetError as error:
        raise UsageError(f"Cannot read the layers in the draft precision {text!r}: {error}") from error


def _precision(word: object, text: str) -> Precision:
    try:
        return Precision(str(word).lower())
    except ValueError:
        raise UsageError(f"{word!r} in the draft precision {text!r} is not same, int8 or int4; {_FORM}.") from None
