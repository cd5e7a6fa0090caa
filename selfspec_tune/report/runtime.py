"""A bench in another runtime, for people."""

from __future__ import annotations

from rich.console import Console

from selfspec_tune.report import text
from selfspec_tune.report.tables import degenerate_line
from selfspec_tune.results import RuntimeBench


def print_runtime_bench(console: Console, result: RuntimeBench) -> None:
    """What the draft gains, what it is compared with, and whether answers stay the target's."""
    accepted = "none drafted" if result.acceptance_rate is None else f"{text.percent(result.acceptance_rate)} accepted"
    lines = [
        f"{result.runtime}: {result.model} with {result.draft}, {result.draft_tokens} tokens a draft",
        f"decode      {text.speedup(result.decode_speedup)}",
        f"end to end  {text.speedup(result.end_to_end_speedup)}",
        f"itself      {text.speedup(result.again)} decode: the target alone against itself",
        f"{accepted}, {result.mean_accepted_tokens:.2f} tokens a verification; {result.tokens_per_second:.1f} tokens/s "
        f"by the target alone, {result.num_prompts} prompts",
        f"{result.same_texts} of {result.num_prompts} answers are the target's own",
    ]
    lines += [f"degenerate answers: {line}" for line in degenerate_line(result)]
    if result.same_texts < result.num_prompts:
        lines += [
            "warning: the others differ: a runtime that verifies several tokens at once may round otherwise than it "
            "does for one. `export --verify` tells rounding from a wrong draft; for llama.cpp of a GGUF target in f32."
        ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
