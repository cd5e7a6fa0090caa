"""A diagnosis for people: the machine, the checks, the roofline, the steps, the fit, and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfspec_tune.draft import Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.report import text
from selfspec_tune.report.bench import model_line
from selfspec_tune.results.diagnosis import Check, ContextTiming, Diagnosis, StepTiming
from selfspec_tune.results.memory_limit import Spread

_MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "bold yellow")}
_DRAFTS = ("draft", "draft at int8", "draft at int4")
_SHOWN = ("decode", *_DRAFTS, "verify(1)", "verify(2)", "verify(4)", "verify(8)", "verify(16)", "verify(24)")


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """Everything, the sentences last."""
    console.print(_machine(found.machine))
    console.print()
    console.print(_checks(found.checks))
    if found.model is not None:
        _print_model(console, found)
    for note in found.notes:
        console.print(Text(f"Note: {note}"))
    for sentence in found.findings:
        console.print(Text(f"→ {sentence}"))
    if found.model is None:
        console.print(Text("\nAdd `model` M to time a model's steps beside what this memory can deliver.", style="dim"))


def _print_model(console: Console, found: Diagnosis) -> None:
    assert found.model is not None
    console.print()
    console.print(Text(f"{model_line(found.model)} · {found.runner} runner", style="bold"))
    if found.draft is not None:
        console.print(Text(f"draft: skip {found.draft.skip_set} ({found.draft.source})"))
    for context in found.contexts:
        console.print(Text(f"\nAfter {context.length} tokens, {context.rounds} rounds", style="bold"))
        if context is found.contexts[0]:
            console.print(_kernels(context))
        console.print(_steps(context))
    if found.left_out:
        lengths = ", ".join(map(str, found.left_out))
        console.print(
            Text(f"Not timed, for want of time: {lengths} tokens. Ask for them with `contexts`.", style="dim")
        )
    if found.cost_model is not None:
        console.print(Text("\nCost model, fitted to draft steps with several skip sets", style="bold"))
        console.print(costs_table(CostModel.from_dict(found.cost_model)))


def _machine(machine: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for name, value in _facts(machine):
        table.add_row(name, Text(value))
    return table


def _facts(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    quota = f", the time of {machine['cpu_quota']:g} of them" if machine.get("cpu_quota") else ""
    yield "processor", f"{machine['cpu'] or machine['architecture']}, {machine['cores']} cores{quota}"
    caches = [
        f"L{c['level']} {text.size(c['bytes'])}" + (f" × {c['count']}" if c["count"] > 1 else "")
        for c in machine["caches"]
    ]
    yield "caches", ", ".join(caches) or text.UNKNOWN
    yield "memory", f"{text.size(machine['memory_bytes'])}, {text.size(machine['available_bytes'])} free"
    load = machine["load_average"]
    yield "load, threads", f"{text.UNKNOWN if load is None else load}, {machine['threads']}"
    packages = [f"{name} {version}" for name, version in machine["packages"].items() if version]
    yield "software", ", ".join([machine["system"], f"Python {machine['python']}", *packages])
    for gpu in machine["gpus"]:
        yield "GPU", f"{gpu['name']}, {text.size(gpu['memory_bytes'])}, compute capability {gpu['capability']}"


def _checks(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        mark, style = _MARKS[check.status]
        detail = Text(check.detail, style="" if check.status == "ok" else style)
        table.add_row(Text(mark, style=style), Text(check.name), detail)
    return table


def _kernels(context: ContextTiming) -> Table:
    table = text.table("read kernel")
    for header in ("bytes", "ms (middle half)", "GB/s"):
        table.add_column(header, justify="right")
    for kernel in context.kernels:
        name = f"{kernel.name} (the limit)" if kernel.name == context.limit else kernel.name
        speed = f"{kernel.bytes_per_second / 1e9:.1f}"
        table.add_row(name, text.size(kernel.bytes), milliseconds(kernel.seconds), speed)
    return table


def _steps(context: ContextTiming) -> Table:
    table = text.table("step")
    for header in ("bytes", "ms (middle half)", "of the limit", "to decode"):
        table.add_column(header, justify="right")
    for name in _SHOWN:
        if (step := context.step(name)) is not None:
            table.add_row(*_step_row(step))
    return table


def _step_row(step: StepTiming) -> tuple[str, str, str, str, str]:
    num_bytes = text.UNKNOWN if step.bytes is None else text.size(step.bytes)
    return step.name, num_bytes, milliseconds(step.seconds), text.percent(step.of_limit), text.times(step.to_decode)


def costs_table(costs: CostModel) -> Table:
    """What an attention, an MLP and the head cost, by precision."""
    table = text.table("one", *costs.mlp)
    for name, seconds in _prices(costs):
        table.add_row(name, *(_one(seconds.get(precision)) for precision in costs.mlp))
    return table


def _prices(costs: CostModel) -> Iterator[tuple[str, Mapping[Precision, float]]]:
    """What each part costs, by precision."""
    classes = costs.by_class()
    yield from classes
    yield f"head, {costs.vocabulary} token ids", costs.heads
    for size, value in costs.vocabularies.items():
        if size != costs.vocabulary:
            yield f"head, {size} token ids", {Precision.SAME: value}
    for context in costs.contexts:
        if context.length != costs.length and "attention" in dict(classes):
            yield f"attention after {context.length} tokens", {Precision.SAME: context.attention}
    for other in costs.others:
        for seen, value in other.by_seen:
            if seen != other.seen:
                yield f"{other.name}, over {seen} tokens", {Precision.SAME: value}
        if other.each_expert:
            yield f"one of {other.experts} {other.name}", other.each_expert


def milliseconds(spread: Spread) -> str:
    """``12.31 (12.10–12.92)``: the median of the rounds and their middle half."""
    return f"{1e3 * spread.median:.2f} ({1e3 * spread.low:.2f}–{1e3 * spread.high:.2f})"


def _one(seconds: float | None) -> str:
    return text.UNKNOWN if seconds is None else f"{1e3 * seconds:.3f} ms"
