"""`AutoModelForCausalLM` of transformers, which here knows one family more."""

from __future__ import annotations

from transformers import AutoModelForCausalLM
from transformers.models.mistral3 import Mistral3Config, Mistral3ForConditionalGeneration

__all__ = ["AutoModelForCausalLM"]

# Its table has Gemma 3 with a vision tower, and not Mistral and Ministral 3 with theirs: text alone runs through both.
AutoModelForCausalLM.register(Mistral3Config, Mistral3ForConditionalGeneration, exist_ok=True)
