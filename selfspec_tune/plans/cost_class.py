"""Which sub-layers of a decoder cost the same to run: those of one shape and one reach, whatever numbers they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind, sublayers_of
from selfspec_tune.plans.attention import AttentionPlan, Reach, ReachKind
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan

_EVERYTHING = Reach()


@dataclass(frozen=True, slots=True)
class CostClass:
    """Sub-layers of one kind that cost the same.

    Attributes:
        name: in words; no other class of the model has it.
        sublayers: their indices, in running order.
        reach: what an attention reads of the cache.
        experts: how many of them a token goes to; 0: they are no experts.
    """

    name: str
    kind: SubLayerKind
    sublayers: tuple[int, ...]
    reach: Reach = _EVERYTHING
    experts: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether it costs the same with any draft, and an attention ever more the more positions are cached."""
        return self.reach == _EVERYTHING and not self.experts


def classes_by_kind(num_layers: int) -> tuple[CostClass, ...]:
    """Attentions and MLPs, each kind a class: what is known of a model without a plan."""
    return tuple(
        CostClass(_NAMES[kind], kind, tuple(s.index for s in sublayers_of(num_layers) if s.kind is kind))
        for kind in SubLayerKind
    )


def cost_classes(plan: DecoderPlan) -> tuple[CostClass, ...]:
    """The classes of a plan, in running order of their first sub-layers."""
    found: dict[Hashable, list[SubLayerId]] = {}
    for sublayer in sublayers_of(plan.num_layers):
        found.setdefault(_shape(plan.sublayer(sublayer)), []).append(sublayer)
    classes, uses = [], Counter[str]()
    for members in found.values():
        planned = plan.sublayer(members[0])
        uses[name := _name(planned)] += 1
        classes.append(
            CostClass(
                name if uses[name] == 1 else f"{name} {uses[name]}",
                members[0].kind,
                tuple(member.index for member in members),
                planned.reach if isinstance(planned, AttentionPlan) else _EVERYTHING,
                planned.chosen if isinstance(planned, ExpertsPlan) else 0,
            )
        )
    return tuple(classes)


def _shape(its: AttentionPlan | MlpPlan | ExpertsPlan) -> Hashable:
    """What decides how much is read and computed; norms, biases, activations and rotations weigh too little."""
    if isinstance(its, AttentionPlan):
        return its.num_heads, its.num_kv_heads, its.head_size, its.reach, its.gate is None, its.cap is None
    if isinstance(its, MlpPlan):
        return its.width, its.is_gated
    return its.count, its.chosen, its.width, its.shared and its.shared.width


_NAMES = {SubLayerKind.ATTENTION: "attention", SubLayerKind.MLP: "MLP"}
_REACHES = {ReachKind.FULL: "", ReachKind.WINDOW: " in a window of {}", ReachKind.CHUNK: " in chunks of {}"}


def _name(planned: AttentionPlan | MlpPlan | ExpertsPlan) -> str:
    if isinstance(planned, AttentionPlan):
        return _NAMES[SubLayerKind.ATTENTION] + _REACHES[planned.reach.kind].format(planned.reach.size)
    return "experts" if isinstance(planned, ExpertsPlan) else _NAMES[SubLayerKind.MLP]
