"""A plan put to a model: every tensor claimed by a sub-layer or the decoder, and nothing computed but what is planned.

A configuration does not tell everything. So what the plan names must be there, in the shape that it says and as a
module that computes what its class does; and what is there must be named: a tensor that nobody claims may change
what is computed, so the model is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models.weights import is_packed
from selfspec_tune.plans import Claim, ClaimKind, DecoderPlan, claims, plan_of
from selfspec_tune.plans.mlp import Activation, ExpertsPlan, MlpPlan

_KNOWN_CODE = {"transformers", "torch"}
_FOREIGN_CODE = "transformers_modules"  # where transformers keeps the code that came with a checkpoint
_CLASSES: dict[ClaimKind, tuple[type[nn.Module], ...]] = {
    ClaimKind.LINEAR: (nn.Linear, FalconLinear),
    ClaimKind.TRANSPOSED: (Conv1D,),
    ClaimKind.EMBEDDING: (nn.Embedding,),
}
_ACTIVATION_CLASSES = {
    Activation.SILU: {"SiLU", "SiLUActivation"},
    Activation.GELU: {"GELU", "GELUActivation"},
    Activation.GELU_TANH: {
        "GELUTanh",
        "PytorchGELUTanh",
        "NewGELUActivation",
        "FastGELUActivation",
        "GELU",
        "BloomGelu",
    },
    Activation.RELU: {"ReLU"},
    Activation.RELU2: {"ReLUSquaredActivation"},
    Activation.XIELU: {"XIELUActivation"},
}


class BoundModel:
    """A model with the plan of what it computes. ``layer`` None: paths are relative to the model."""

    def __init__(self, model: PreTrainedModel, plan: DecoderPlan) -> None:
        self.model = model
        self.plan = plan

    def module(self, path: str, layer: int | None = None) -> Any:
        """The module at a path."""
        return self.model.get_submodule(self._absolute(path, layer))

    def tensor(self, path: str, layer: int | None = None) -> Tensor:
        """The parameter or buffer at a path, without its gradient."""
        owner, _, name = self._absolute(path, layer).rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), name)
        return tensor.data

    def _absolute(self, path: str, layer: int | None) -> str:
        return path if layer is None else f"{self.plan.layer_path(layer)}.{path}"


def bind(model: PreTrainedModel) -> BoundModel:
    """The model with its plan; it may be on torch's meta device.

    Raises `UnsupportedModelError` with the reason alone: no plan, or the model is not what the plan says.
    """
    if is_packed(model):
        raise UnsupportedModelError("its weights are quantised")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UnsupportedModelError("an adapter is applied to its weights")
    _check(_own_code(model))
    plan = plan_of(model.config.to_dict())
    try:
        _check(_reasons(model, plan))
    except AttributeError as error:  # a module of another make may lack anything
        raise UnsupportedModelError(f"its structure is another than planned ({error})") from error
    return BoundModel(model, plan)


def unbound_reason(model: PreTrainedModel) -> str | None:
    """Why `bind` refuses a model; None where it does not."""
    try:
        bind(model)
    except UnsupportedModelError as error:
        return str(error)
    return None


def _check(reasons: Iterator[str]) -> None:
    reason = next(reasons, None)
    if reason is not None:
        raise UnsupportedModelError(reason)


def _reasons(model: PreTrainedModel, plan: DecoderPlan) -> Iterator[str]:
    made = list(claims(plan))
    for claim in made:
        yield from (f"its {claim.path} {reason}" for reason in _unlike(model, claim))
    yield from _unclaimed(model, made)
    yield from _mixed_biases(model, plan)
    yield from _activations(model, plan)
    yield from _rope_sizes(model, plan)
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            yield f"its {name} computes more than its class does"


def _unlike(model: nn.Module, claim: Claim) -> Iterator[str]:
    """How what lies at a claim's path differs from it."""
    if claim.kind is ClaimKind.TENSOR:
        owner, _, name = claim.path.rpartition(".")
        found = getattr(_submodule(model, owner), name, None)
        yield from _misshapen(found, claim)
        return
    module = _submodule(model, claim.path)
    if module is None:
        yield "is missing"
        return
    classes = _CLASSES.get(claim.kind)
    if classes is None:
        if claim.kind is ClaimKind.NORM:
            yield from _misshapen(getattr(module, "weight", None), claim)
        return
    is_plain = any(type(module).forward is kind.forward for kind in classes) and not list(module.children())
    if claim.kind is ClaimKind.EMBEDDING:  # families scale and shift theirs: the plan says how
        is_plain = isinstance(module, nn.Embedding) and module.max_norm is None
    if not is_plain or (_tensors(module) - {"weight", "bias"}):
        yield f"is no plain {classes[0].__name__} ({type(module).__name__})"
        return
    yield from _misshapen(module.weight, claim)


def _misshapen(found: Any, claim: Claim) -> Iterator[str]:
    if not isinstance(found, Tensor):
        yield "is missing"
        return
    shape = tuple(reversed(found.shape)) if claim.kind is ClaimKind.TRANSPOSED else tuple(found.shape)
    wanted = claim.shape
    if wanted and (len(shape) != len(wanted) or any(w not in (None, s) for s, w in zip(shape, wanted, strict=True))):
        said = " × ".join("any" if size is None else str(size) for size in wanted)
        yield f"is {' × '.join(map(str, shape))}, where {said} is planned"


def _unclaimed(model: nn.Module, made: list[Claim]) -> Iterator[str]:
    """Tensors that no claim covers, or more than one does."""
    owners: dict[str, int] = {}
    by_path: dict[str, Claim] = {claim.path: claim for claim in made}
    if len(by_path) < len(made):
        yield "its plan claims a tensor twice"
    for name in _all_tensors(model):
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        owners[name] = sum(claim.covers(name) for path in prefixes if (claim := by_path.get(path)) is not None)
    for name, count in owners.items():
        if count != 1:
            yield f"it has a {name} that {'is claimed twice' if count else 'our own loops do not know'}"


def _mixed_biases(model: nn.Module, plan: DecoderPlan) -> Iterator[str]:
    """Linear layers over one input of which some have a bias: fused into one, all have or none."""
    for index, layer in enumerate(plan.layers):
        for planned in (layer.attention, layer.mlp):
            paths = () if isinstance(planned, ExpertsPlan) else planned.inputs
            modules = [model.get_submodule(f"{plan.layer_path(index)}.{path}") for path in paths]
            if len({module.bias is None for module in modules}) > 1:
                yield f"its {plan.layer_path(index)} has biases on some of {', '.join(paths)} only"


def _all_tensors(model: nn.Module) -> Iterator[str]:
    """Names of every parameter and every buffer that a checkpoint holds; a tied one has two."""
    yield from (name for name, _ in model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        temporary = module._non_persistent_buffers_set
        names = (name for name, _ in module.named_buffers(recurse=False) if name not in temporary)
        yield from (f"{path}.{name}" if path else name for name in names)


def _activations(model: nn.Module, plan: DecoderPlan) -> Iterator[str]:
    """Activation modules of the layers that no sub-layer of the plan computes with."""
    mlps = {layer.mlp.activation for layer in plan.layers}
    mlps |= {
        layer.mlp.shared.activation
        for layer in plan.layers
        if not isinstance(layer.mlp, MlpPlan) and layer.mlp.shared is not None
    }
    known = set().union(*(_ACTIVATION_CLASSES[activation] for activation in mlps))
    everything = set().union(*_ACTIVATION_CLASSES.values())
    for name, module in model.get_submodule(plan.layers_path).named_modules():
        kind = type(module).__name__
        is_activation = name.rpartition(".")[2] in ("act_fn", "act", "activation_fn") or kind in everything
        if is_activation and kind not in known:
            yield f"its {plan.layers_path}.{name} is {kind}, where {' or '.join(sorted(mlps))} is planned"


def _rope_sizes(model: nn.Module, plan: DecoderPlan) -> Iterator[str]:
    """Tables of rotary positions that rotate more or less of a head than planned."""
    for rope in {layer.attention.rope: None for layer in plan.layers}:
        table = None if rope is None else plan.ropes[rope.table]
        if rope is None or table is None or table.module is None:
            continue
        found = getattr(_submodule(model, table.module), table.frequencies, None)
        count = found.numel() if isinstance(found, Tensor) else 0
        if 2 * count != rope.size:
            yield f"its {table.module} rotates {2 * count} dimensions of a head, where {rope.size} are planned"


def _own_code(model: nn.Module) -> Iterator[str]:
    """Classes whose computation is neither transformers' nor torch's: it may do anything, at any position."""
    kinds = {type(module) for module in model.modules()}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        home = getattr(kind.forward, "__module__", "")
        if home.partition(".")[0] not in _KNOWN_CODE or home.startswith(_FOREIGN_CODE):
            yield f"its {kind.__name__} computes by code of its own ({home})"


def _tensors(module: nn.Module) -> set[str]:
    """Names of the module's own parameters and persistent buffers, those of its parts apart."""
    temporary = module._non_persistent_buffers_set
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name for name, _ in own if name not in temporary}


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
