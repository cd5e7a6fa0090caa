"""MLPs and mixtures of experts as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selfspec_tune.plans.norm import NormPlan
from selfspec_tune.plans.sublayer import SubLayerPlan


class Activation(StrEnum):
    """Activation functions by their usual names."""

    SILU = "SiLU"
    GELU = "GELU"  # by erf
    GELU_TANH = "GELU-tanh"
    RELU = "ReLU"
    RELU2 = "ReLU²"
    XIELU = "xIELU"


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpPlan(SubLayerPlan):
    """Gated: output(inner(activation(gate) * up)); plain: output(inner(activation(input))).

    Attributes:
        width: rows of gate, of up, or of the one input layer.
        inputs: linear layers, relative to the layer: (gate, up); one that stacks [gate | up]; or a plain MLP's only.
        is_transposed: whether weights are stored [inputs, outputs] (transformers' Conv1D).
        activation_path: the module that holds the activation's learned numbers (xIELU).
        inner: a norm before the output layer.
    """

    width: int
    inputs: tuple[str, ...]
    output: str
    is_gated: bool = True
    activation: Activation = Activation.SILU
    activation_path: str | None = None
    is_transposed: bool = False
    inner: NormPlan | None = None


class Score(StrEnum):
    """How router logits become scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterPlan:
    """Which experts a token goes to, and with which weights.

    Logits of all experts are a linear layer of the normalised input, then widened to float32, in which all that
    follows is computed: scores; the choice of the best by score (by logit if ``is_chosen_first``) plus ``choice_bias``
    within the best groups; weights: the scores of the chosen without that bias, over their sum, times ``scale``.

    Attributes:
        weight: a parameter [experts, width], relative to the layer; ``bias`` [experts] of its logits.
        is_float32: whether that linear layer is computed in float32, of widened input and weight. Otherwise it is
            computed in the type of its weight, most often the model's, and its logits are rounded to that.
        score: of all logits; with ``is_chosen_first`` of the chosen ones' logits alone.
        choice_bias: a tensor of one number per expert, [experts] or [1, experts].
        groups: experts are in so many groups, neighbours together, of which the best ``kept_groups`` are chosen from,
            ranked by the sum of the two best of what experts are chosen by.
        renormalise: whether the weights of the chosen are divided by their sum, which is at least ``least_sum``
            and is added ``sum_epsilon``.
        scale: of the weights, at the end.
        is_rounded: whether weights are rounded to the model's type in the end, and what they are multiplied with too.
            Otherwise products with weights are float32, summed over the chosen, and the sum alone is rounded.
        on_input: whether weights multiply what experts read (llama4) instead of what they give; those are rounded.
    """

    weight: str
    bias: str | None = None
    is_float32: bool = False
    score: Score = Score.SOFTMAX
    is_chosen_first: bool = False
    choice_bias: str | None = None
    groups: int = 1
    kept_groups: int = 1
    renormalise: bool = False
    least_sum: float = 0.0
    sum_epsilon: float = 0.0
    scale: float = 1.0
    is_rounded: bool = False
    on_input: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsPlan(SubLayerPlan):
    """Routed experts, gated MLPs each, whose outputs are summed by weight, and what runs beside them.

    The sum over the chosen is one in float32, rounded to the model's type once. Layers may differ in all of this.

    Attributes:
        count: experts; ``chosen``: those that a token goes to; ``width``: rows of one expert's gate.
        gate_up: a parameter [experts, 2 width, hidden], gate rows first, relative to the layer.
        down: a parameter [experts, hidden, width].
        is_transposed: weights are [experts, hidden, 2 width] and [experts, width, hidden].
        is_interleaved: gate and up rows alternate, gate first.
        biases: parameters of ``gate_up`` [experts, 2 width] and ``down`` [experts, hidden].
        clamp: gate at most this, up within ± this, before the activation (gpt-oss).
        gate_slope: gpt-oss's gate * sigmoid(slope * gate) * (up + 1) instead of activation(gate) * up.
        shared: an MLP for every token, whose output is added to the rounded sum; its norms, scale and ``silence``
            are unused.
        shared_gate: a linear layer [1, hidden]: the shared output is multiplied with its sigmoid.
    """

    count: int
    chosen: int
    width: int
    router: RouterPlan
    gate_up: str
    down: str
    activation: Activation = Activation.SILU
    is_transposed: bool = False
    is_interleaved: bool = False
    biases: tuple[str, str] | None = None
    clamp: float | None = None
    gate_slope: float | None = None
    shared: MlpPlan | None = None
    shared_gate: str | None = None
