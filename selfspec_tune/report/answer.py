"""An answer for people: who drafted what of it, how fast it came, and what plain decoding took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selfspec_tune.draft import Draft, Source
from selfspec_tune.draft.sources import SOURCES

if TYPE_CHECKING:
    from selfspec_tune.model.generation import Generation

REJECTED = "red strike"
_STYLES = {
    "skip": "green",
    "copies": "magenta",
    "skip and copies": "yellow",
    "whole model": "green",
    "fewer experts": "green",
}
_ENDS = {
    "eos": "the model ended it",
    "length": "as long as allowed",
    "context": "the model's context is full",
    "stop": "a stop text came",
    "interrupted": "interrupted",
}


def source_name(source: str, draft: Draft | None) -> str:
    """What drafted, as people call it: skip, copies or a source's label; the empty text where nothing did."""
    if source in SOURCES:
        return SOURCES[source].label
    if source == Source.PLAIN or draft is None:
        return ""
    parts = [] if draft.skip_set.is_empty else ["skip"]
    parts += [] if draft.precision.is_same else ["copies"]
    return " and ".join(parts if draft.experts is None else [*parts, "fewer experts"]) or "whole model"


def style_of(source: str, draft: Draft | None) -> str:
    """The colour of accepted tokens of a source; none for the whole model's own."""
    if source in SOURCES:
        return SOURCES[source].style
    return _STYLES.get(source_name(source, draft).removesuffix(" and fewer experts"), "")


def legend(draft: Draft | None) -> list[tuple[str, str]]:
    """What the colours of accepted and rejected tokens mean, as (text, style)."""
    by_model = [Source.MODEL] if draft is not None and draft.model_drafts else []
    sources = [*by_model, *(source.name for source in (draft.sources if draft is not None else ()))]
    return [*((source_name(one, draft), style_of(one, draft)) for one in sources), ("rejected", REJECTED)]


def footer(answer: Generation, draft: Draft | None) -> str:
    """How many tokens, how fast, how many of the drafted ones were accepted, and why it ended."""
    rate = answer.tokens_per_second
    parts = [f"{len(answer.tokens)} tokens" + (f" at {rate:.1f} tokens/s" if rate else "")]
    parts[0] += f", the first after {answer.prefill_seconds:.2f} s"
    if answer.drafted:
        each = ", ".join(
            f"{source_name(source, draft)} {counts.accepted}/{counts.drafted}"
            for source, counts in answer.by_source.items()
        )
        share = answer.accepted / answer.drafted
        parts.append(f"{answer.accepted} of {answer.drafted} drafted tokens accepted, {share:.0%} ({each})")
    return "; ".join([*parts, _ENDS[answer.finish_reason]])


def comparison(answer: Generation) -> str:
    """What plain decoding took beside it."""
    plain = answer.plain
    if plain is None or plain.tokens_per_second is None or answer.decode_speedup is None:
        return "plain decoding: too few tokens to compare"
    ratio = f"decode {answer.decode_speedup:.2f}× as fast"
    if answer.speedup is not None:
        ratio += f", end to end {answer.speedup:.2f}×"
    same = "the same text" if plain.text == answer.text else "another text"
    return f"plain decoding: {plain.tokens_per_second:.1f} tokens/s, {same}; {ratio}. One answer says little: see bench"
