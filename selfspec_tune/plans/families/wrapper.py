"""Models that read more than text: their decoder, as text alone runs through it, and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.decoder import DecoderPlan, HeadPlan
from selfspec_tune.plans.families import gemma, mistral, persimmon, phi3, qwen
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.norm import NormPlan

_AT = "model.language_model"


def gemma3(config: Config) -> DecoderPlan:
    """Gemma 3 with a vision tower. This head never caps its logits."""
    plan = _wrapped(config, gemma.gemma3_text, "model.vision_tower", "model.multi_modal_projector")
    return replace(plan, head=HeadPlan())


def mistral3(config: Config) -> DecoderPlan:
    """Mistral or Ministral 3 with a vision tower."""
    is_ministral = config["text_config"].get("model_type") == "ministral3"
    family = mistral.ministral3 if is_ministral else mistral.mistral
    return _wrapped(config, family, "model.vision_tower", "model.multi_modal_projector")


def got_ocr2(config: Config) -> DecoderPlan:
    """Qwen 2 with a vision tower."""
    return _wrapped(config, qwen.qwen2, "model.vision_tower", "model.multi_modal_projector")


def fuyu(config: Config) -> DecoderPlan:
    """Persimmon with a projection of image patches."""
    return _wrapped(config, persimmon.persimmon, "model.vision_embed_tokens")


def moss_transcribe_diarize(config: Config) -> DecoderPlan:
    """Qwen 3 with an ear."""
    return _wrapped(config, qwen.qwen3, "model.audio_tower", "model.multi_modal_projector")


def phi4_multimodal(config: Config) -> DecoderPlan:
    """Phi 4 Mini, whose embedding has what reads images and sound beside it."""
    return replace(phi3.phi3(config), beside=("model.embed_tokens_extend",))


def _wrapped(config: Config, family: Callable[[Config], DecoderPlan], *beside: str) -> DecoderPlan:
    """The plan of ``text_config``, of which ``family`` makes one, moved from ``model`` to where the wrapper has it."""
    plan = family(config["text_config"])
    if plan.model_type != family.__name__:
        raise UnsupportedModelError(f"its text is read by a decoder of another family ({plan.model_type})")

    def moved(path: str) -> str:
        return _AT + path.removeprefix("model")

    norm: NormPlan | None = None if plan.norm is None else replace(plan.norm, path=moved(plan.norm.path))
    changes: dict[str, Any] = {
        "model_type": config["model_type"],
        "layers_path": moved(plan.layers_path),
        "embedding": replace(plan.embedding, path=moved(plan.embedding.path)),
        "norm": norm,
        "ropes": {
            name: replace(table, module=None if table.module is None else moved(table.module))
            for name, table in plan.ropes.items()
        },
        "beside": beside,
    }
    return replace(plan, **changes)
