"""The README and the pictures of the growth study, from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from study_kit import machine_line

from selfspec_tune.report import text
from selfspec_tune.report.plot import new_figure, save_figure

Row = Mapping[str, Any]
_AROUND = 5  # trials before and after one whose cost is shown: their median


def cells_of(trials: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """The end of every sampler and number of sub-layers, with its trials in order."""
    for end in trials:
        if end.get("ended"):
            key = {"sampler": end["sampler"], "sublayers": end["sublayers"]}
            yield end, [row for row in trials if key.items() <= row.items() and "trial" in row]


def trials_table(trials: Sequence[Row]) -> list[str]:
    """What trials cost beside their measurement, at some numbers of trials."""
    most = max(len(rows) for _, rows in cells_of(trials))
    shown = [number for number in (1, 10, 50, 100, 200, 400) if number < most] + [most]
    lines = [f"| sub-layers | sampler | {' | '.join(f'trial {number}' for number in shown)} | journal | opening | |"]
    lines += ["| --- " * (len(shown) + 5) + "|"]
    for end, rows in sorted(cells_of(trials), key=lambda cell: cell[0]["sublayers"]):
        cells = [str(end["sublayers"]), end["sampler"]]
        cells += [_around(rows, number) if number <= len(rows) else text.UNKNOWN for number in shown]
        cells += [f"{rows[-1]['journal_bytes'] / 1e6:.1f} MB", f"{1e3 * end['open_seconds']:.0f} ms"]
        cells.append("" if end["ended"] == "trials" else f"ended: trial {len(rows)} took {rows[-1]['seconds']:.1f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _around(rows: Sequence[Row], number: int) -> str:
    """Milliseconds in all, and of them in the sampler, around a trial."""
    near = rows[max(0, number - 1 - _AROUND) : number + _AROUND] if number > 1 else rows[:1]
    whole, sampler = (1e3 * median(row[name] for row in near) for name in ("seconds", "sampler_seconds"))
    return f"{whole:.0f} ms ({sampler:.0f})"


def calibration_table(rows: Sequence[Row]) -> list[str]:
    """Time and memory of every calibration."""
    lines = [
        "| layers | answers | tokens kept | answers take | scorer | evaluation | replay | kept | formula | at most |"
    ]
    lines += ["| --- " * 10 + "|"]
    for row in rows:
        cell = row["cell"]
        seconds = [f"{row['answer_seconds']:.1f} s", f"{row['scorer_seconds']:.2f} s"]
        seconds += [f"{1e3 * median(row[name]):.0f} ms" for name in ("evaluation_seconds", "replay_seconds")]
        sizes = [text.size(max(row[name], 0)) for name in ("kept_bytes", "formula_bytes", "peak_bytes")]
        cells = [str(cell["layers"]), str(cell["answers"]), str(row["tokens"]), *seconds, *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def fit_line(fit: Row) -> str:
    """The line through the kept bytes, beside the formula."""
    slope, formula = fit["bytes_per_token_and_layer"], fit["formula_bytes_per_token_and_layer"]
    return (
        f"Fitted: {slope:.0f} bytes for each token and layer (R² {fit['r_squared']:.4f}), beside "
        f"{fit['bytes_per_token']:.0f} for each token whatever the depth; the formula, keys and values of all layers, "
        f"gives {formula:.0f}: {100 * (slope / formula - 1):+.1f} %. Building the scorer takes "
        f"{1e6 * fit['scorer_seconds_per_token_and_layer']:.1f} µs for each token and layer of this narrow model."
    )


def plan_lines(plans: Sequence[Row]) -> list[str]:
    """The plan for the large model, a column for each way to use the GPUs."""
    shape, task, machine = (plans[0][name] for name in ("shape", "task", "machine"))
    lines = [
        f"**Computed, not measured**: {shape['name']} ({shape['layers']} layers, width {shape['width']}, MLP "
        f"{shape['mlp_width']}, {shape['heads']} heads, {shape['kv_heads']} of keys and values, bfloat16; "
        f"{shape['source']}) on {machine['gpus']} GPUs.",
        f"Assumed: {machine['bytes_a_second'] / 1e12:.2f} TB/s and {machine['flops'] / 1e12:.0f} TFLOP/s nominal for "
        f"each GPU (H100 SXM), of which {100 * machine['bandwidth_share']:.0f} % and "
        f"{100 * machine['flops_share']:.0f} % are reached (a whole step of the engine at the 7B shape reached 56 % of "
        f"one H200's nominal bandwidth, `studies/engine-gpu`; larger matrices reach more); {task['prompts']} prompts "
        f"of {task['prompt_tokens']} tokens, {task['new_tokens']} new tokens, a search of {task['seconds'] / 60:.0f} "
        "minutes. The text, the shares of the time and the length of a trial are the program's own; a replay's time "
        "and what Optuna takes at this number of sub-layers are those measured above, past the last trial on a line.",
        "This version runs a model on one device; the plan says what several would have to do.",
        "",
        f"| | {' | '.join(plan['machine']['name'] for plan in plans)} |",
        "| --- " * (len(plans) + 1) + "|",
    ]
    for name, values in _plan_rows(plans):
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def _plan_rows(plans: Sequence[Row]) -> Iterator[tuple[str, list[str]]]:
    def row(name: str, figure: Any) -> tuple[str, list[str]]:
        return name, [figure(plan) for plan in plans]

    yield row("bytes of a step", lambda plan: f"{plan['step_bytes'] / 1e9:.1f} GB")
    yield row("a step", lambda plan: f"{1e3 * plan['step_seconds']:.1f} ms")
    yield row("prefill", lambda plan: f"{1e3 * plan['prefill_seconds']:.0f} ms")
    for name in plans[0]["gpu_bytes"]:
        yield row(f"each GPU: {name}", lambda plan, name=name: f"{plan['gpu_bytes'][name] / 1e9:.2f} GB")
    yield row(
        "each GPU: in all, of its memory",
        lambda plan: f"{sum(plan['gpu_bytes'].values()) / 1e9:.1f} of {plan['machine']['memory_bytes'] / 1e9:.0f} GB",
    )
    for name in plans[0]["evaluations"]:
        yield row(
            f"proxy, {name} text: an evaluation, in decode steps; evaluations",
            lambda plan, name=name: (
                f"{1e3 * plan['evaluation_seconds'][name]:.0f} ms, "
                f"{plan['evaluation_steps'][name]:.1f}; {plan['evaluations'][name]}"
            ),
        )
    yield row("importance: evaluations", lambda plan: str(plan["importance_evaluations"]))
    for name in plans[0]["stage_seconds"]:
        yield row(f"time: {name}", lambda plan, name=name: text.duration(plan["stage_seconds"][name]))
    yield row("a trial, measured end to end", lambda plan: f"{plan['trial_seconds']:.1f} s")
    yield row("trials that fit", lambda plan: str(plan["trials"]))
    yield row("of their time to propose and store", lambda plan: _share(plan["overhead_share"]))


def _share(share: float | None) -> str:
    return text.UNKNOWN if share is None else f"{100 * share:.1f} %"


def draw_trials(trials: Sequence[Row], path: Path) -> None:
    """Seconds beside the measurement by trial, a panel for each number of sub-layers."""
    sizes = sorted({end["sublayers"] for end, _ in cells_of(trials)})
    figure = new_figure(3.4 * len(sizes), 3.4)
    for place, size in enumerate(sizes, 1):
        axes = figure.add_subplot(1, len(sizes), place)
        for end, rows in cells_of(trials):
            if end["sublayers"] == size:
                axes.plot([row["trial"] + 1 for row in rows], [row["seconds"] for row in rows], label=end["sampler"])
        axes.set_yscale("log")
        axes.set_title(f"{size} sub-layers", fontsize="small")
        axes.set_xlabel("trial", fontsize="small")
        axes.set_ylabel("seconds beside the measurement", fontsize="small")
        axes.legend(fontsize="x-small")
    save_figure(figure, path)


def draw_calibration(rows: Sequence[Row], fit: Row, path: Path) -> None:
    """Kept bytes against tokens × layers, with the formula's line."""
    figure = new_figure(5.0, 3.6)
    axes = figure.add_subplot()
    for layers in sorted({row["cell"]["layers"] for row in rows}):
        of_depth = [row for row in rows if row["cell"]["layers"] == layers]
        products = [row["tokens"] * layers for row in of_depth]
        axes.scatter(products, [row["kept_bytes"] / 2**20 for row in of_depth], s=16, label=f"{layers} layers")
    most = max(row["tokens"] * row["cell"]["layers"] for row in rows)
    axes.plot([0, most], [0, most * fit["formula_bytes_per_token_and_layer"] / 2**20], color="0.4", linewidth=0.8)
    axes.set_xlabel("tokens × layers")
    axes.set_ylabel("MiB that the scorer keeps; line: formula")
    axes.legend(fontsize="x-small")
    save_figure(figure, path)


def readme(results: Row, command: str) -> list[str]:
    """The whole README, from the results."""
    return [
        "# How a search's own costs grow",
        "",
        "Made by one command:",
        "",
        "```bash",
        command,
        "```",
        "",
        machine_line(results["provenance"]),
        "",
        "## A trial beside its measurement",
        "",
        "Optuna's proposal and the journal, in the search's own study with a scoring that takes no time; every "
        "sub-layer is skipped or drafts at one of three precisions. Median around that trial, in brackets the sampler "
        "alone; then the journal's size after the last trial, and the time to open it again. The rest of a trial's "
        "cost is writing the journal to disk, and depends on the disk.",
        "",
        *trials_table(results["trials"]),
        "",
        "![seconds by trial](trials.svg)",
        "",
        "## Calibration",
        "",
        "Narrow models with random weights: one window of 40 positions in each answer, keys and values of all text "
        "before it kept, bfloat16, fast runner, a process each. An evaluation scores one draft on all windows. "
        "Resident memory (free memory is returned to the system first) more than before the scorer was built: kept by "
        "the scorer, and at most, while it evaluated drafts.",
        "",
        *calibration_table(results["calibration"]),
        "",
        fit_line(results["fit"]),
        "",
        "![kept bytes](calibration.svg)",
        "",
        "## A model of 70 billion parameters on 8 GPUs",
        "",
        *plan_lines(results["plans"]),
        "",
    ]
