"""A search for people: what it would do, and the skip.json that it found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfspec_tune.checks import visible_line
from selfspec_tune.draft import DraftPrecision, experts_a_token
from selfspec_tune.report import text
from selfspec_tune.report.bench import decoding, degenerate_line, model_line
from selfspec_tune.report.text import STYLES, score_verdict
from selfspec_tune.results import DraftSettings, Score, SkipConfig

if TYPE_CHECKING:
    from selfspec_tune.search import SearchPlan

_SHOWN_CHARACTERS = 600  # of a prompt
SPLITS = ("calibration", "selection", "test")


def print_plan(console: Console, plan: SearchPlan) -> None:
    """Model, prompts by split, the first of each task, stages with estimated times, and memory."""
    model = plan.model
    known = (model.get(key) for key in ("name", "dtype", "device"))
    console.print(Text(" · ".join(str(part) for part in known if part), style="bold"))
    console.print(_facts(plan))
    console.print(_first_prompts(plan))
    console.print(_stages(plan))
    total = plan.total_seconds
    estimate = "cannot be estimated before a first run" if total is None else f"about {text.duration(total)}"
    console.print(Text(f"Time in all: {estimate}. A few steps were timed; nothing was written."))


def _facts(plan: SearchPlan) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_row("sub-layers", str(plan.num_sublayers))
    table.add_row("prompts", ", ".join(f"{number} {split}" for split, number in plan.splits.items()))
    table.add_row("prompt tokens", ", ".join(f"{key} {number}" for key, number in plan.prompt_tokens.items()))
    if plan.config.get("start_from"):
        table.add_row("starts from", Text(", ".join(plan.config["start_from"])))
    table.add_row("memory", ", ".join(f"{text.size(num)} {what}" for what, num in plan.memory_bytes.items()))
    return table


def _first_prompts(plan: SearchPlan) -> Table:
    table = text.table("task", "its first prompt, as the model reads it")
    for task, prompt in plan.first_prompts.items():
        table.add_row(
            Text(text.spelled_out(task, _SHOWN_CHARACTERS)), Text(text.spelled_out(prompt, _SHOWN_CHARACTERS))
        )
    return table


def _stages(plan: SearchPlan) -> Table:
    table = text.table("stage", "what")
    table.add_column("about", justify="right")
    for name, detail, seconds in plan.stages:
        table.add_row(Text(name), Text(detail), text.UNKNOWN if seconds is None else text.duration(seconds))
    return table


def print_skip_config(console: Console, config: SkipConfig) -> None:
    """Model, layer map, facts, and the verdict last."""
    skip_set = config.skip_set()
    console.print(Text(model_line(config.model), style="bold"))
    for row in text.layer_map_rows(skip_set, console.width):
        console.print(Text(row))
    console.print(Text(text.MAP_LEGEND, style="dim"))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_row("skip set", Text(str(skip_set)))
    facts.add_row("draft", Text(draft_line(config.draft, config.model.num_layers)))
    if config.objective == "standalone":
        facts.add_row("objective", "standalone: keys and values of its own, as an exported draft has")
    for name, value in _score_facts(config.score):
        facts.add_row(name, value)
    facts.add_row("model", Text(visible_line(f"{config.model.id}, fingerprint {config.model.fingerprint}")))
    for name, value in _provenance_facts(config.provenance):
        facts.add_row(name, Text(visible_line(value)))
    console.print(facts)
    console.print(Text(_verdict(config), style=STYLES[config.score.verdict]))


def _verdict(config: SkipConfig) -> str:
    origin = config.provenance.get("imported_from")
    if origin and not config.score.num_prompts:
        file = visible_line(f"{origin['file']} ({origin['dialect']})")
        return f"Imported from {file}, not measured yet: give it to `selfspec-tune bench`."
    return score_verdict(config.score)


def draft_line(draft: DraftSettings, num_layers: int) -> str:
    """``threshold 0.60, at most 6 tokens, of the first 8192 token ids``."""
    threshold = "" if draft.policy in ("fixed", "cost-aware") else f" {draft.exit_threshold:.2f}"
    parts = [f"{draft.policy}{threshold}", f"at most {draft.max_draft_tokens} tokens"]
    if draft.vocabulary is not None:
        parts.append(f"of the first {draft.vocabulary} token ids")
    if draft.precision != "same":
        parts.append(f"at {DraftPrecision.from_json(draft.precision, num_layers)}")
    if draft.experts is not None:
        parts.append(f"by {experts_a_token(draft.experts)}")
    then = "" if draft.model_drafts else " alone"
    parts += [f"{source}{then}" for source in draft.sources]
    return ", ".join(parts)


def _score_facts(score: Score) -> Iterator[tuple[str, str]]:
    if score.end_to_end_speedup is not None:
        yield "end to end", text.speedup(score.end_to_end_speedup)
    if score.decode_speedup is not None:
        yield "decode", ", ".join([text.speedup(score.decode_speedup), *_rates(score)])
    if score.acceptance_rate is not None:
        yield "acceptance", text.percent(score.acceptance_rate)
    if score.mean_accepted_tokens is not None:
        yield "MAT", text.figure(score.mean_accepted_tokens, 2)
    for line in degenerate_line(score):
        yield "degenerate answers", line


def _rates(score: Score) -> Iterator[str]:
    if score.decode_tokens_per_second is not None:
        yield f"{score.decode_tokens_per_second:.1f} tokens/s"
    if score.of_memory_limit is not None:
        yield f"{text.percent(score.of_memory_limit.value)} of the memory's limit for plain bfloat16"


def _provenance_facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `selfspec_tune.provenance.collect` recorded, as far as the file has it."""
    program = provenance.get("selfspec_tune") or {}
    made = [provenance.get("created"), _with("selfspec-tune", program.get("version"))]
    made.append(_with("commit", (program.get("commit") or "")[:10]))
    if any(made):
        yield "made", _joined(made)
    hardware = provenance.get("hardware") or {}
    machine = [hardware.get("cpu"), hardware.get("gpu"), _with("threads", hardware.get("threads"))]
    if any(machine):
        yield "machine", _joined(machine)
    sessions = provenance.get("sessions") or []
    for session in sessions if len(sessions) > 1 else ():
        place = (session.get(name) for name in ("started", "cpu", "gpu"))
        versions = (_with(name, session.get(name)) for name in ("threads", "torch"))
        yield f"session {session['session']}", _joined([*place, *versions, f"{session.get('trials', 0)} trials"])
    packages = provenance.get("packages") or {}
    if packages:
        yield "packages", _joined(_with(name, version) for name, version in packages.items())
    prompts = provenance.get("prompts") or {}
    if prompts:
        counts = (f"{len(prompts[split])} {split}" for split in SPLITS if split in prompts)
        yield "prompts", _joined([prompts.get("source"), *counts])
    if drawn := decoding(prompts):
        yield "decoding", drawn
    starts = (provenance.get("search") or {}).get("start_from")
    if starts:
        yield "started from", _joined(start["name"] for start in starts)
    if provenance.get("seed") is not None:
        yield "seed", str(provenance["seed"])


def _with(name: str, value: Any) -> str | None:
    return f"{name} {value}" if value else None


def _joined(parts: Iterable[Any]) -> str:
    return ", ".join(str(part) for part in parts if part)
