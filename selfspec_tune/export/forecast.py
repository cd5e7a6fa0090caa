"""What a skip.json says of its skip set as a draft that stands alone."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec_tune.results import Score, SkipConfig

DEFAULT_DRAFT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Forecast:
    """How many tokens it should draft at a time, and what a user should expect, in words."""

    draft_tokens: int
    text: str


def forecast(config: SkipConfig | None) -> Forecast:
    """The search's own measurement where it judged standalone drafts, else its prediction, else that there is none."""
    if config is None:
        return Forecast(DEFAULT_DRAFT_TOKENS, _unknown("The file says nothing of how it was searched"))
    if config.objective == "standalone":
        return Forecast(config.draft.max_draft_tokens, _measured(config))
    predicted = (config.provenance.get("search") or {}).get("standalone")
    if not predicted:
        return Forecast(DEFAULT_DRAFT_TOKENS, _unknown("The skip set was searched to share the model's cache"))
    acceptance = predicted["acceptance_rate"]
    return Forecast(
        predicted["draft_tokens"],
        "The skip set was searched to share the model's cache, which an exported draft cannot. With keys and values of "
        f"its own it is predicted to decode {predicted['decode_speedup']:.2f}x as fast as the model alone, drafting "
        f"{predicted['draft_tokens']} tokens of which {_share(acceptance)} are accepted{_shared(config)}. "
        f"`search --objective standalone` finds better ones.{_rule(config, exact=True)}",
    )


def dropped(config: SkipConfig | None) -> list[str]:
    """What the skip set drafted with in its search and an export does not carry, as notes."""
    if config is None:
        return []
    lost = [
        *(["low-precision copies"] if config.draft.precision != "same" else []),
        *(["n-gram lookup"] if config.draft.ngram else []),
    ]
    return [f"Searched with {' and '.join(lost)}, which no export carries: it gains less."] if lost else []


def _measured(config: SkipConfig) -> str:
    score, speedup = config.score, config.score.decode_speedup
    if speedup is None:
        return "Searched to stand alone; its search has measured nothing on test prompts yet."
    rule = _rule(config, exact=(config.provenance.get("search") or {}).get("acceptance"))
    return (
        f"Searched to stand alone: {speedup.value:.2f}x decode, {_share(score.acceptance_rate)} of "
        f"{config.draft.max_draft_tokens} drafted tokens accepted, in this program's engine on {score.num_prompts} "
        f"{score.split} prompts{_degenerate(score)}.{rule}"
    )


def _degenerate(score: Score) -> str:
    share = score.degenerate_share
    return "" if share is None else f" ({share:.0%} of the answers degenerate)"


def _rule(config: SkipConfig, *, exact: str | bool | None) -> str:
    """By which rule tokens were accepted where the target samples; empty where it decodes greedily."""
    temperature = (config.provenance.get("prompts") or {}).get("temperature") or 0.0
    if not temperature:
        return ""
    if exact:
        return (
            f" At temperature {temperature:g} a token counts as accepted where the target draws the draft's most "
            "probable one, as vLLM, SGLang, TensorRT-LLM and llama.cpp do by default; transformers accepts more."
        )
    return (
        f" At temperature {temperature:g} tokens were accepted by the ratio of both probabilities, as transformers "
        "does. vLLM, SGLang, TensorRT-LLM and llama.cpp keep by default only what the target draws too, and accept "
        "fewer: search again to know how many."
    )


def _shared(config: SkipConfig) -> str:
    rate = config.score.acceptance_rate
    return "" if rate is None else f" ({_share(rate)} when it shares them)"


def _share(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:.0%}"


def _unknown(reason: str) -> str:
    return (
        f"{reason}: what it is worth as a draft that stands alone is not known. `bench --runtime` measures it; "
        "`search --objective standalone` finds sets for it."
    )
