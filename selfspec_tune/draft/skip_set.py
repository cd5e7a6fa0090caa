"""Which attention and MLP sub-layers a draft leaves out.

Sub-layers are numbered as they run (`SubLayerId.index`), so a model of L layers has 2 L of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from selfspec_tune.checks import shown
from selfspec_tune.draft.sublayer import SubLayerKind, sublayers_of
from selfspec_tune.errors import SkipSetError

MOST_LAYERS = 10_000  # many more than any model has
KEPT_MARK = "█"
SKIPPED_MARK = "·"

_FORM = "expected a form like 'attn 2-9,14 · mlp 3,5', or 'none'"
_KINDS = {"attn": "attention", "attention": "attention", "mlp": "mlp"}
_NUMBER = "[0-9]{1,18}"  # Python's \d are the digits of every script, and longer ones are no layer's
_NUMBERS = rf"{_NUMBER}\s*(?:[-–]\s*{_NUMBER})?"
_PART = re.compile(
    rf"(?P<kind>[a-z]+)\s*:?\s*(?P<numbers>{_NUMBERS}(?:\s*,\s*{_NUMBERS})*)\s*[·;|+]?\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SkipSet:
    """The sub-layers that drafting leaves out of a model of ``num_layers`` layers.

    ``attention`` and ``mlp`` hold 0-based layer numbers; they are sorted and freed of
    repetitions on construction. Raises `SkipSetError` for a layer the model lacks, or more than `MOST_LAYERS`.
    """

    num_layers: int
    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MOST_LAYERS:
            raise SkipSetError(
                f"A skip set for {shown(self.num_layers)} layers; expected at least one layer, at most {MOST_LAYERS}."
            )
        for kind in ("attention", "mlp"):
            object.__setattr__(self, kind, _normalised(kind, getattr(self, kind), self.num_layers))

    @classmethod
    def empty(cls, num_layers: int) -> SkipSet:
        """Nothing skipped: the draft is the model itself."""
        return cls(num_layers)

    @classmethod
    def parse(cls, text: str, num_layers: int) -> SkipSet:
        """Read the short text form, ``attn 2-9,14 · mlp 3,5``.

        The dot and the order are free, ``attention`` may be spelled out, ``none`` is the
        empty set. Raises `SkipSetError` saying what was not understood.
        """
        stripped = text.strip()
        if stripped.lower() == "none":
            return cls(num_layers)
        layers: dict[str, list[int]] = {"attention": [], "mlp": []}
        position = 0
        while position < len(stripped) or position == 0:
            part = _PART.match(stripped, position)
            kind = _KINDS.get(part["kind"].lower()) if part else None
            if part is None or kind is None:
                raise SkipSetError(f"Cannot read the skip set {shown(text)} at {shown(stripped[position:])}; {_FORM}.")
            layers[kind] += _parse_numbers(part["numbers"], kind, num_layers)
            position = part.end()
        return cls(num_layers, tuple(layers["attention"]), tuple(layers["mlp"]))

    @classmethod
    def from_flags(cls, flags: Sequence[bool]) -> SkipSet:
        """From 2 L flags in running order, true where the sub-layer is skipped."""
        if len(flags) % 2 or not flags:
            raise SkipSetError(f"{len(flags)} skip flags; expected two for each layer (attention, MLP).")
        skipped = [index for index, flag in enumerate(flags) if flag]
        return cls._from_indices(len(flags) // 2, skipped)

    @classmethod
    def uniform(cls, num_layers: int, num_attention: int, num_mlp: int) -> SkipSet:
        """Evenly spaced layers, as a reference without any search.

        The first and the last layer are kept as long as the others suffice; the first
        attention always is. Raises `SkipSetError` if more is asked for than there is.
        """
        return cls(
            num_layers,
            _spread("attention", num_layers, num_attention, most=num_layers - 1),
            _spread("mlp", num_layers, num_mlp, most=num_layers),
        )

    @classmethod
    def random(cls, num_layers: int, num_attention: int, num_mlp: int, seed: int) -> SkipSet:
        """Layers drawn without replacement; the same ``seed`` draws the same set."""
        generator = Random(seed)
        for kind, count in (("attention", num_attention), ("mlp", num_mlp)):
            _check_count(kind, count, num_layers)
        attention = generator.sample(range(num_layers), num_attention)
        mlp = generator.sample(range(num_layers), num_mlp)
        return cls(num_layers, tuple(attention), tuple(mlp))

    @classmethod
    def _from_indices(cls, num_layers: int, indices: Iterable[int]) -> SkipSet:
        sublayers = sublayers_of(num_layers)
        skipped = [sublayers[index] for index in indices]
        attention = tuple(layer for kind, layer in skipped if kind is SubLayerKind.ATTENTION)
        mlp = tuple(layer for kind, layer in skipped if kind is SubLayerKind.MLP)
        return cls(num_layers, attention, mlp)

    def __str__(self) -> str:
        parts = [
            f"{label} {_format_numbers(layers)}"
            for label, layers in (("attn", self.attention), ("mlp", self.mlp))
            if layers
        ]
        return " · ".join(parts) or "none"

    @property
    def num_skipped(self) -> int:
        """Number of sub-layers skipped, from 0 to 2 L."""
        return len(self.attention) + len(self.mlp)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is skipped."""
        return self.num_skipped == 0

    @property
    def indices(self) -> frozenset[int]:
        """The skipped sub-layers' indices, each from 0 to 2 L - 1."""
        running = range(2 * self.num_layers)
        attention, mlp = running[0::2], running[1::2]
        return frozenset([*(attention[layer] for layer in self.attention), *(mlp[layer] for layer in self.mlp)])

    def to_flags(self) -> tuple[bool, ...]:
        """2 L flags in running order, true where the sub-layer is skipped."""
        skipped = self.indices
        return tuple(index in skipped for index in range(2 * self.num_layers))

    def distance(self, other: SkipSet) -> int:
        """Number of sub-layers that one skips and the other keeps (Hamming distance)."""
        if other.num_layers != self.num_layers:
            raise SkipSetError(
                f"Skip sets for {self.num_layers} and {other.num_layers} layers cannot be compared; "
                "both must be for the same model."
            )
        return len(self.indices ^ other.indices)

    def layer_map(self) -> str:
        """Two rows, attention above MLP, a character per layer: ``█`` kept, ``·`` skipped."""
        flags = self.to_flags()
        rows = (("attn", flags[0::2]), ("mlp", flags[1::2]))
        return "\n".join(
            f"{label:<4} " + "".join(SKIPPED_MARK if skipped else KEPT_MARK for skipped in row) for label, row in rows
        )

    def to_dict(self) -> dict[str, list[int]]:
        """The ``skip`` object of our files."""
        return {"attention": list(self.attention), "mlp": list(self.mlp)}


def _normalised(kind: str, layers: Iterable[int], num_layers: int) -> tuple[int, ...]:
    given = tuple(layers)
    for layer in given:
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise SkipSetError(f"{kind} layer {shown(layer)} is not a whole number; expected 0 to {num_layers - 1}.")
        _check_layer(kind, layer, num_layers)
    return tuple(sorted(set(given)))


def _check_layer(kind: str, layer: int, num_layers: int) -> None:
    if not 0 <= layer < num_layers:
        raise SkipSetError(
            f"{kind} layer {shown(layer)} is out of range; the model has {num_layers} layers, numbered 0 to "
            f"{num_layers - 1}."
        )


def _parse_numbers(text: str, kind: str, num_layers: int) -> list[int]:
    layers: list[int] = []
    for item in text.split(","):
        first, *rest = (int(number) for number in re.split(r"[-–]", item))
        last = rest[0] if rest else first
        if last < first:
            raise SkipSetError(f"The range {item.strip()} runs backwards; write {last}-{first}.")
        _check_layer(kind, last, num_layers)
        layers += range(first, last + 1)
    return layers


def _format_numbers(layers: Sequence[int]) -> str:
    starts = [layers[0], *(b for a, b in pairwise(layers) if b != a + 1)]
    ends = [*(a for a, b in pairwise(layers) if b != a + 1), layers[-1]]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _check_count(kind: str, count: int, most: int) -> None:
    if not 0 <= count <= most:
        raise SkipSetError(f"Cannot skip {count} {kind} sub-layers here; expected 0 to {most}.")


def _spread(kind: str, num_layers: int, count: int, *, most: int) -> tuple[int, ...]:
    _check_count(kind, count, most)
    if count <= num_layers - 2:
        first, available = 1, num_layers - 2
    else:
        first, available = num_layers - count, count
    return tuple(first + (2 * i + 1) * available // (2 * count) for i in range(count))
