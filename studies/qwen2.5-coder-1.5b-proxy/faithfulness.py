"""How far predictions of the proxy hold: rank correlation, bias, tables and a picture, from a study's records."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from study_kit import interval, machine_line, said

from selfspec_tune.intervals import Interval, cluster_bootstrap, geometric_mean_ratio
from selfspec_tune.report import text
from selfspec_tune.report.plot import new_figure, save_figure

Row = Mapping[str, Any]
LEAST_CORRELATION, LARGEST_BIAS = 0.9, 0.05
EVALUATIONS_A_SECOND, POSITIONS = 2.0, 200  # the target, and the tokens of text that it is for
_FEWEST = 3  # points of which a rank correlation says anything


@dataclass(frozen=True, slots=True)
class Comparison:
    """One thing that predictions are held against: an entry of the draft records of a variant."""

    variant: str
    entry: str
    about: str


COMPARISONS = (
    Comparison("shared", "measured", "time, same text"),
    Comparison("shared", "counted", "counts, same text"),
    Comparison("shared", "held_out_measured", "time, held-out text"),
    Comparison("shared", "held_out_counted", "counts, held-out text"),
    Comparison("standalone", "counted", "standalone draft: counts, same text"),
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Spearman's rank correlation, and the geometric mean of predicted over found, with 95 % intervals over drafts."""

    number: int
    correlation: Interval
    bias: Interval

    @property
    def is_ranked(self) -> bool:
        """Whether the correlation reaches its target."""
        return self.correlation.value >= LEAST_CORRELATION

    @property
    def is_unbiased(self) -> bool:
        """Whether the bias is within its target."""
        return abs(self.bias.value - 1) <= LARGEST_BIAS


def agreement(predicted: Sequence[float], found: Sequence[float]) -> Agreement | None:
    """How far predictions agree with what was found; None for fewer than three drafts."""
    if len(predicted) < _FEWEST:
        return None
    drawn = stats.bootstrap(
        (np.array(predicted), np.array(found)),
        _rank_correlation,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    correlation = Interval(_rank_correlation(predicted, found), float(drawn.low), float(drawn.high))
    bias = cluster_bootstrap(predicted, found, range(len(found)), statistic=geometric_mean_ratio)
    return Agreement(len(found), correlation, bias)


def _rank_correlation(first: Sequence[float] | NDArray[Any], second: Sequence[float] | NDArray[Any]) -> float:
    """Spearman's; 0 where all values of either are equal, as in a resample of one draft alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(stats.spearmanr(first, second).statistic)
    return 0.0 if math.isnan(value) else value


def points(drafts: Sequence[Row], comparison: Comparison, policy: str | None = None) -> list[tuple[float, float]]:
    """(predicted, found) of every draft of the comparison that has a figure, or of those under ``policy`` alone."""
    return [
        (draft["predicted"], value_of(draft[comparison.entry]))
        for draft in drafts
        if draft["variant"] == comparison.variant
        and draft.get(comparison.entry) is not None
        and policy in (None, draft["policy"])
    ]


def value_of(figure: Any) -> float:
    """A figure that is a number, or an interval's record."""
    return float(figure["value"] if isinstance(figure, Mapping) else figure)


def compared(drafts: Sequence[Row]) -> list[dict[str, Any]]:
    """A record for every comparison, over all drafts and, where there are several policies, under each."""
    policies = list(dict.fromkeys(draft["policy"] for draft in drafts))
    records = []
    for comparison in COMPARISONS:
        for policy in (None, *policies) if len(policies) > 1 else (None,):
            pairs = points(drafts, comparison, policy)
            found = agreement(*zip(*pairs, strict=True)) if pairs else None
            if found is not None:
                records.append(
                    {
                        "about": comparison.about,
                        "policy": policy,
                        "drafts": found.number,
                        "spearman": said(found.correlation),
                        "is_ranked": found.is_ranked,
                        "bias": said(found.bias),
                        "is_unbiased": found.is_unbiased,
                    }
                )
    return records


def comparison_table(records: Sequence[Row]) -> list[str]:
    """The comparisons, each with its targets met or missed."""
    lines = ["| prediction against | policy | drafts | Spearman, at least 0.9 | | bias, within 5 % | |"]
    lines += ["| --- " * 7 + "|"]
    for record in records:
        bias = {name: f"{100 * (value - 1):+.1f} %" for name, value in record["bias"].items()}
        cells = [record["about"], record["policy"] or "all", str(record["drafts"])]
        cells += ["{value:.3f} [{low:.3f}–{high:.3f}]".format(**record["spearman"]), met(record["is_ranked"])]
        cells += ["{value} [{low} – {high}]".format(**bias), met(record["is_unbiased"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def met(is_met: bool) -> str:
    """A target's verdict."""
    return "**met**" if is_met else "**missed**"


def speed_line(speed: Row) -> str:
    """How fast the proxy evaluates drafts; the target is about so much text on two cores."""
    positions, a_second = speed["positions"], speed["evaluations_a_second"]
    line = f"Proxy: {a_second:.2f} evaluations a second on {positions} tokens of text, {speed['threads']} threads"
    line += f" ({speed['evaluations']} drafts, {speed['seconds']:.1f} s, policy {speed['policy']})"
    if positions < POSITIONS:
        return f"{line}; the target is {EVALUATIONS_A_SECOND:g} on {POSITIONS} tokens."
    return f"{line}; at least {EVALUATIONS_A_SECOND:g} on {POSITIONS} tokens: {met(a_second >= EVALUATIONS_A_SECOND)}."


def drafts_table(drafts: Sequence[Row], variant: str) -> list[str]:
    """Every draft of a variant, the best predicted first."""
    entries = [comparison for comparison in COMPARISONS if comparison.variant == variant]
    lines = [f"| draft | origin | predicted | {' | '.join(entry.about for entry in entries)} | accepted |"]
    lines += ["| --- " * (len(entries) + 4) + "|"]
    for draft in drafts:
        if draft["variant"] == variant:
            found = [draft.get(entry.entry) for entry in entries]
            cells = [text.UNKNOWN if figure is None else text.times(value_of(figure)) for figure in found]
            cells = [draft["about"], draft["origin"], text.times(draft["predicted"]), *cells]
            lines.append(f"| {' | '.join([*cells, text.percent(draft['acceptance_rate'])])} |")
    return lines


def draw(drafts: Sequence[Row], path: Path) -> None:
    """Found against predicted speedup, a panel for each comparison, with the line on which both are equal."""
    panels = [comparison for comparison in COMPARISONS if points(drafts, comparison)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.4 * columns, 3.4 * rows)
    for number, comparison in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for policy in dict.fromkeys(draft["policy"] for draft in drafts):
            pairs = points(drafts, comparison, policy)
            if pairs:
                axes.scatter(*zip(*pairs, strict=True), s=14, label=policy)
        shown = [value for pair in points(drafts, comparison) for value in pair]
        axes.plot([min(shown), max(shown)], [min(shown), max(shown)], color="0.4", linewidth=0.8)
        axes.set_title(comparison.about, fontsize="small")
        axes.set_xlabel("predicted decode speedup", fontsize="small")
        axes.set_ylabel("found", fontsize="small")
        axes.legend(fontsize="x-small")
    save_figure(figure, path)


def readme(results: Row, command: str, picture: str) -> list[str]:
    """The whole README of a study, from its results."""
    drafts, settings = results["drafts"], results["settings"]
    lines = ["# How faithful the proxy is", "", "Made by one command:", "", "```bash", command, "```", ""]
    lines += [machine_line(results["provenance"]), ""]
    lines += [
        f"{settings['sets']} drafts of each variant, evenly over predicted decode speedup, out of "
        f"{results['pool']} that were predicted; {settings['windows']} windows of {settings['length']} tokens of the "
        f"model's own answers to {settings['prompts']} prompts, {settings['depths']} tokens of a shared-cache draft "
        f"told apart; drafts at precision {results['precision']}, "
        f"policies {', '.join(settings['policies'])}.",
        "Time: real drafting and verification beside plain decoding, interleaved. Counts: what those runs drafted and "
        "accepted, through the cost model, so without timing noise. Held-out text: answers to other prompts, on which "
        "nothing was predicted. A standalone draft has keys and values of its own throughout; its loop here is "
        "slow, so it is judged by counts alone. Intervals are over drafts, at 95 %; bias is the geometric mean of "
        "predicted over found, less one. Other text may be easier or harder for all drafts alike: its bias says more "
        "about so little text than about the proxy. A run ends with its window, where a prediction's last round may "
        "go one token further: that counts more the shorter the windows and the worse the draft.",
        "",
        *comparison_table(results["comparisons"]),
        "",
        speed_line(results["proxy"]),
        "",
        f"![predicted against found]({picture})",
        "",
        *noise_lines(results),
    ]
    for variant in dict.fromkeys(draft["variant"] for draft in drafts):
        lines += ["", f"## Drafts: {variant} cache" if variant == "shared" else f"## Drafts: {variant}", ""]
        lines += drafts_table(drafts, variant)
    return [*lines, ""]


def noise_lines(results: Row) -> list[str]:
    """The baseline against itself, and drafts without a figure."""
    lines = [
        f"Baseline against itself, {name} text: {text.speedup(interval(null))} decode.  "
        for name, null in results["baseline_against_itself"].items()
    ]
    lossy = [draft["about"] for draft in results["drafts"] if draft["lossy"]]
    if lossy:
        lines.append(f"Without a measured figure, for their output was not lossless: {'; '.join(lossy)}.")
    return lines
