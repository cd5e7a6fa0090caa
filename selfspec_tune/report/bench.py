"""A bench for people, in any runtime: tables and lines that fit the terminal, 60 columns or 200."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from selfspec_tune.checks import visible_line
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.report import text
from selfspec_tune.report.text import STYLES, bench_verdict, headline_method
from selfspec_tune.requests import Sampling
from selfspec_tune.results import (
    BenchResult,
    LosslessCount,
    MemoryLimit,
    MethodResult,
    ModelInfo,
    RuntimeBench,
    Score,
)
from selfspec_tune.results.metrics import AUTOREGRESSIVE, with_decode_rates

WIDE = 140
_FEWEST_OF_A_TASK = 3  # prompts: the interval of two spans everything
_MEANINGS = {
    "end to end": "speedup over autoregressive, the baseline, with the prefill [95 % interval]",
    "decode": "speedup over autoregressive, the baseline, without the prefill",
    "tok/s": "tokens a second of decode",
    "of limit": "tok/s ÷ what the memory allows plain bfloat16 decoding",
    "accept": "share of drafted tokens that verification keeps",
    "MAT": "mean tokens a verification gives, bonus included",
    "draft cost": "a drafted token's time ÷ a plainly decoded one's",
    "A-A": "the baseline against itself, decode",
    "lossless": "= the baseline's tokens, tie within the numeric floor, ≠ a mismatch",
}


def legend(headers: Iterable[str]) -> str:
    """What the columns of a table say, and what they are ratios to."""
    return " ".join(f"{header}: {_MEANINGS[header]}." for header in headers if header in _MEANINGS)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the bench table, shown from a console width of ``min_width`` on."""

    header: str
    min_width: int
    cell: Callable[[MethodResult, bool], str]
    justify: Literal["left", "right"] = "right"


_COLUMNS = (
    _Column("end to end", 0, lambda m, wide: text.speedup(m.end_to_end_speedup, _gap(wide))),
    _Column("decode", 66, lambda m, wide: text.speedup(m.decode_speedup, _gap(wide))),
    _Column("tok/s", 0, lambda m, _: text.figure(m.decode_tokens_per_second, 1)),
    _Column("of limit", 88, lambda m, _: of_limit(m)),
    _Column("accept", 72, lambda m, _: text.percent(m.acceptance_rate)),
    _Column("MAT", 76, lambda m, _: text.figure(m.mean_accepted_tokens, 2)),
    _Column("draft cost", 104, lambda m, _: text.figure(m.draft_cost_fraction, 2)),
    _Column("lossless", 0, lambda m, wide: lossless(m.lossless, full=wide), "left"),
    _Column("prompts", 112, lambda m, _: str(m.num_prompts)),
)
_IN_FLOAT32 = "in float32"  # that a method of transformers ran on another copy of the model than ours
# Methods of our own, whose skip set says it all.
_KNOWN = frozenset({"autoregressive", "self-speculative", "hf-generate", "empty-skip-set", "uniform", "random"})


def bench_report(result: BenchResult, width: int) -> Group:
    """Everything a bench says: table, breakdown by task, checks, warnings, and the verdict last."""
    parts: list[RenderableType] = [
        Text(bench_title(result), style="bold"),
        *(Text(visible_line(line), style="dim") for line in conditions_lines(result)),
        methods_table(result, width),
        *map(Text, position_lines(result)),
        Text(legend(column.header for column in _columns(width)), style="dim"),
        *(Text(visible_line(line), style="dim") for line in rival_lines(result)),
    ]
    headline = headline_method(result)
    if headline is not None and len(headline.per_task) > 1 and _tell_anything(headline):
        parts += [Text(""), tasks_table(headline)]
    parts += [Text(""), *(Text(line) for line in check_lines(result))]
    warnings = [visible_line(line) for line in result.warnings]
    parts += [Text("warning: ", style="yellow").append(line, style="default") for line in warnings]
    parts.append(Text(bench_verdict(result), style=STYLES[result.verdict]))
    return Group(*parts)


def print_bench(console: Console, result: BenchResult) -> None:
    """`bench_report` at the console's width."""
    console.print(bench_report(result, console.width))


def bench_title(result: BenchResult) -> str:
    """Model, dtype and device, and which prompts were used."""
    read = ", which the search had read" if result.in_sample else ""
    return visible_line(f"{model_line(result.model)} · {result.split} prompts{read}")


def conditions_lines(result: BenchResult) -> list[str]:
    """``AMD EPYC · 2 threads · native runner · builtin prompts of 32–118 tokens, up to 128 new · greedy``.

    As far as the file says; empty where it says nothing.
    """
    hardware, prompts = (result.provenance.get(name) or {} for name in ("hardware", "prompts"))
    parts = [hardware.get("gpu") or hardware.get("cpu")]
    if threads := hardware.get("threads"):
        parts.append("1 thread" if threads == 1 else f"{threads} threads")
    if runner := result.provenance.get("runner"):
        parts.append(f"{runner} runner")
    if prompts:
        lengths = [run.prompt_tokens for run in result.runs]
        read = f" of {min(lengths)}–{max(lengths)} tokens" if lengths else ""
        parts.append(f"{prompts.get('source')} prompts{read}, up to {prompts.get('max_new_tokens')} new")
        parts.append(decoding(prompts) or "greedy")
    known = [part for part in parts if part]
    return [" · ".join(known)] if known else []


def decoding(prompts: Mapping[str, Any]) -> str:
    """How tokens were drawn, by what files say of it: ``temperature 0.7, top p 0.9``; empty where greedily."""
    known = {name: prompts[name] for name in Sampling.__dataclass_fields__ if name in prompts}
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in Sampling(**known).in_force.items())


def model_line(model: ModelInfo) -> str:
    """``smollm2-135m · bfloat16 · cpu``, as far as it is known."""
    return visible_line(" · ".join(part for part in (model.name or model.id, model.dtype, model.device) if part))


def of_limit(method: MethodResult) -> str:
    """Its share of the memory's limit, ``212 %``."""
    return text.percent(method.of_memory_limit.value if method.of_memory_limit else None)


def _columns(width: int) -> list[_Column]:
    return [column for column in _COLUMNS if width >= column.min_width]


def methods_table(result: BenchResult, width: int) -> Table:
    """A row for each method; a narrow console gets fewer columns and the skip set under the name."""
    wide = width >= WIDE
    columns = _columns(width)
    table = text.table()
    table.add_column("method", overflow="fold", max_width=None if wide else max(14, width * 3 // 8))
    if wide:
        table.add_column("skip", overflow="fold", max_width=32)
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True)
    for method in with_decode_rates(result.methods, result.runs):
        name, skip = _label(method, result), _detail(method, result.model.num_layers)
        head = [Text(name), Text(skip)] if wide else [_stacked(name, skip)]
        table.add_row(*head, *(Text(column.cell(method, wide)) for column in columns))
    return table


def _tell_anything(method: MethodResult) -> bool:
    """Whether there is a task with prompts enough for an interval that says something."""
    return max(task.num_prompts for task in method.per_task.values()) >= _FEWEST_OF_A_TASK


def tasks_table(method: MethodResult) -> Table:
    """The method's figures by task."""
    table = text.table()
    table.add_column("task")
    degenerate = ["degenerate"] if method.has_degenerate else []
    for header in ("prompts", "end to end", "decode", "accept", *degenerate):
        table.add_column(header, justify="right")
    for task, found in sorted(method.per_task.items()):
        table.add_row(
            Text(task),
            str(found.num_prompts),
            Text(text.speedup(found.end_to_end_speedup)),
            Text(text.speedup(found.decode_speedup)),
            text.percent(found.acceptance_rate),
            *(text.percent(found.degenerate_share) for _ in degenerate),
        )
    return table


def check_lines(result: BenchResult) -> list[str]:
    """What stands beside the figures: the memory's limit, the answers, the baseline against itself and against
    ``model.generate``.
    """
    lines = [*limit_lines(result), *degenerate_lines(result)]
    if result.a_a is not None:
        lines.append(
            f"Baseline against itself: {text.speedup(result.a_a.end_to_end)} end to end, "
            f"{text.speedup(result.a_a.decode)} decode, {result.a_a.num_prompts} prompts."
        )
    if result.baseline_vs_generate is not None:
        lines.append(f"Our baseline is {text.times(result.baseline_vs_generate)} as fast as model.generate.")
    return lines + sessions_lines(result.provenance)


def limit_lines(result: BenchResult) -> list[str]:
    """What the memory allows plain bfloat16 decoding, and how near the baseline and the headline come."""
    if result.memory_limit is None:
        return []
    methods = (headline_method(result), result.method(AUTOREGRESSIVE))
    reached = [f"{_label(method, result)} {of_limit(method)}" for method in methods if method is not None]
    return [f"{limit_text(result.memory_limit)}; of it {', '.join(reached)}."]


def limit_text(limit: MemoryLimit) -> str:
    """``Memory limit of plain bfloat16 decoding: 15.2 tok/s (2.71 GB a token at 41.2 GB/s, 40.1–42.5)``."""
    read = limit.bytes_per_second
    spread = "" if read.low == read.high else f", {read.low / 1e9:.1f}–{read.high / 1e9:.1f}"
    return (
        f"Memory limit of plain bfloat16 decoding: {limit.tokens_per_second:.1f} tok/s "
        f"({limit.bytes_per_token / 1e9:.2f} GB a token at {read.median / 1e9:.1f} GB/s{spread})"
    )


def position_lines(result: BenchResult) -> list[str]:
    """How far the headline's drafts were right; none without one that ran."""
    headline = headline_method(result)
    if headline is None or headline.unavailable:
        return []
    return [f"Accepted by draft position: {text.by_position(headline.by_position)}."]


def degenerate_lines(result: BenchResult) -> list[str]:
    """What the answers of a bench are, with the share of every method whose share is another."""
    headline = headline_method(result)
    if headline is None:
        return []
    lines = [f"Degenerate answers: {line}." for line in degenerate_line(headline)]
    others = [m for m in result.methods if m.has_degenerate and m.degenerate_share != headline.degenerate_share]
    named = [f"{text.percent(m.degenerate_share)} of {_label(m, result)}" for m in others]
    return [*lines, f"Of the other rows' answers degenerate: {', '.join(named)}."] if named else lines


def degenerate_line(figures: MethodResult | RuntimeBench | Score) -> list[str]:
    """The share of answers that go on in circles, and the figures without them; empty where that is not known."""
    short = figures.num_too_short
    number = figures.num_runs if isinstance(figures, MethodResult) else figures.num_prompts
    if figures.degenerate_share is None:
        return [f"not known: all {number} are too short to tell"] if short else []
    if not figures.degenerate_share:
        return [f"0 of {number}; {short} too short to tell"] if short else ["none"]
    rest = figures.without_degenerate
    without = f"{text.speedup(rest.end_to_end_speedup)} end to end without them" if rest else "there are no others"
    too_short = f"; {short} too short to tell" if short else ""
    return [f"{text.percent(figures.degenerate_share)}; {without}{too_short}"]


def sessions_lines(provenance: Mapping[str, Any]) -> list[str]:
    """That a measurement was resumed, where it was."""
    sessions = [session for session in provenance.get("sessions", []) if session["runs"]]  # a search lists others too
    if len(sessions) < 2:
        return []
    runs = ", ".join(str(session.get("runs", text.UNKNOWN)) for session in sessions)
    return [f"Measured in {len(sessions)} sessions ({runs} pairs); each pair is of one session."]


def rival_lines(result: BenchResult) -> list[str]:
    """How each rival and each part of the draft drafts, for those that ran."""
    return [
        f"{_label(method, result)}: {method.description}."
        for method in result.methods
        if (method.name not in _KNOWN or _IN_FLOAT32 in method.description)
        and method.description
        and not method.unavailable
    ]


def lossless(count: LosslessCount, *, full: bool) -> str:
    """``32 = / 1 tie / 0 ≠``; not ``full``: only what occurred, a line each. A dash where nothing ran."""
    parts = [(count.identical, "="), (count.numerical_ties, "tie"), (count.mismatches, "≠")]
    if count.sampled:
        parts.append((count.sampled, "sampled"))
    if full and any(number for number, _ in parts):
        return " / ".join(f"{number} {mark}" for number, mark in parts)
    return "\n".join(f"{number} {mark}" for number, mark in parts if number) or text.UNKNOWN


def skip_text(method: MethodResult, num_layers: int) -> str:
    """The method's skip set in its short form; empty for a method without one."""
    if method.skip is None:
        return ""
    return str(SkipSet(num_layers, tuple(method.skip.attention), tuple(method.skip.mlp)))


def _detail(method: MethodResult, num_layers: int) -> str:
    """What stands beside or under a method's name: its skip set, or why it could not run."""
    return f"not available: {method.unavailable}" if method.unavailable else skip_text(method, num_layers)


def _gap(wide: bool) -> str:
    return " " if wide else "\n"


def _label(method: MethodResult, result: BenchResult) -> str:
    """Its name, or its id where several methods share the name."""
    namesakes = sum(other.name == method.name for other in result.methods)
    return method.id if namesakes > 1 else method.name


def _stacked(name: str, skip: str) -> Text:
    return Text(name).append(f"\n{skip}", style="dim") if skip else Text(name)


def print_runtime_bench(console: Console, result: RuntimeBench) -> None:
    """What the draft gains, what it is compared with, and whether answers stay the target's."""
    accepted = "none drafted" if result.acceptance_rate is None else f"{text.percent(result.acceptance_rate)} accepted"
    lines = [
        f"{result.runtime}: {result.model} with {result.draft}, {result.draft_tokens} tokens a draft",
        f"decode      {text.speedup(result.decode_speedup)} over the target alone",
        f"end to end  {text.speedup(result.end_to_end_speedup)} over the target alone, with the prompt's pass",
        f"itself      {text.speedup(result.again)} decode: the target alone against itself",
        f"decode      {text.figure(result.decode_tokens_per_second('speculative'), 1)} tokens/s, "
        f"{text.figure(result.decode_tokens_per_second('plain'), 1)} by the target alone",
        f"{accepted}, {result.mean_accepted_tokens:.2f} tokens a verification, {result.num_prompts} prompts",
        f"{result.same_texts} of {result.num_prompts} answers are the target's own",
    ]
    lines += [f"degenerate answers: {line}" for line in degenerate_line(result)]
    if result.same_texts < result.num_prompts:
        lines += [
            "warning: the others differ: a runtime that verifies several tokens at once may round otherwise than it "
            "does for one. An export with `verify` tells rounding from a wrong draft; for llama.cpp of a GGUF target "
            "in f32."
        ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
