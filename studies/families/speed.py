#!/usr/bin/env python3
"""How near do families beyond Llama come to what the memory allows, and to Llama?

    .venv/bin/python studies/families/speed.py --out speed.json
    .venv/bin/python studies/families/speed.py --tiny                # the same code on tiny shapes: no figures

Each shape is built with random weights in bfloat16, beside a Llama of the same width, depth, heads and vocabulary,
whose MLP is as wide as what a token reads of the family's. Both are timed in the same rounds, with read kernels and
with `model.generate`: a decode step, the verification of four drafted tokens, and draft steps. Bytes are counted as
`doctor` counts them; of experts those that so many tokens read in the mean. Ratios are taken round by round, and given
with their quartiles. Random weights draft badly, so no speedup is measured here. Written after each shape.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import torch
from random_model import random_model
from rich.console import Console
from study_kit import run
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Runner
from selfspec_tune.engine.choice import choose_runner
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.timing import Step, TimingRounds, decode_step, draft_step, time_steps, verify_step
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.files import write_json_atomic
from selfspec_tune.measure.roofline import Limit, find_limit, largest_matrix, read_kernels
from selfspec_tune.measure.traffic import Traffic, traffic_of
from selfspec_tune.models import LoadedModel
from selfspec_tune.provenance import collect
from selfspec_tune.report import text

Row = dict[str, Any]
SCHEMA = "selfspec-tune/families-speed"
SHAPES: dict[str, Row] = {
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
    },
    "smollm3-1.5b": {  # 16 of its 36 layers
        "model_type": "smollm3",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "mixtral-8x0.3b": {
        "model_type": "mixtral",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONTEXT, PROMPT, VERIFIED, GENERATED = 1024, 256, 4, 12
_OF_LLAMA = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)


def llama_like(shape: Mapping[str, Any]) -> Row:
    """The Llama of the same sizes, whose MLP is as wide as what a token reads."""
    kept = {name: shape[name] for name in _OF_LLAMA if name in shape}
    width = shape["intermediate_size"] * shape.get("num_experts_per_tok", 1)
    tied = shape.get("tie_word_embeddings", shape["model_type"].startswith("gemma"))
    return {"model_type": "llama", **kept, "intermediate_size": width, "tie_word_embeddings": tied}


class TokenTimes(BaseStreamer):
    """When `model.generate` gave its prompt, its first token and each further one."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass

    @property
    def per_token(self) -> float:
        """Seconds of each token after the first."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


class Timed:
    """A model, its runner after a prompt, and its steps."""

    def __init__(self, name: str, shape: Row, asked: argparse.Namespace, tokens: Sequence[int]) -> None:
        dtype = torch.float32 if asked.tiny else torch.bfloat16
        self.loaded: LoadedModel = random_model(name, shape, torch.device("cpu"), dtype, CONTEXT)
        self.runner: Runner = choose_runner(self.loaded, asked.runner, notice=lambda line: print(f"  {line}"))
        self.traffic: Traffic = traffic_of(self.loaded)
        self.tokens = [token % self.runner.vocabulary_size for token in tokens]
        self.runner.reserve(PROMPT + VERIFIED + 2)
        prefill(self.runner, self.tokens)
        self.generated: list[float] = []

    def drafts(self) -> dict[str, Draft]:
        """Half of all sub-layers skipped; of a mixture, also one expert a token."""
        layers, policy = self.runner.num_layers, DraftPolicy(PolicyKind.FIXED, VERIFIED)
        found = {"half skipped": Draft(SkipSet.uniform(layers, layers // 2, layers // 2), policy)}
        if self.traffic.has_experts:
            found["one expert"] = Draft(SkipSet.empty(layers), policy, experts=1)
        return found

    def steps(self, name: str) -> dict[str, Step]:
        """By name: every step begins after the prompt."""
        runner, tokens = self.runner, self.tokens
        steps = {"decode": decode_step(runner, tokens), "verify": verify_step(runner, tokens, VERIFIED)}
        steps |= {draft: draft_step(runner, tokens, settings) for draft, settings in self.drafts().items()}
        return {f"{name} {kind}": self._rewound(step) for kind, step in steps.items()}

    def bytes_of(self) -> dict[str, float]:
        """What each step reads."""
        found = {"decode": self.traffic.full_step(PROMPT), "verify": self.traffic.full_step(PROMPT, VERIFIED + 1)}
        return found | {name: self.traffic.draft_step(draft, PROMPT) for name, draft in self.drafts().items()}

    @torch.inference_mode()
    def generate(self) -> None:
        """Decode a few tokens by `model.generate`, and keep the seconds of one."""
        model: Any = self.loaded.model
        settings = GenerationConfig(max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False, pad_token_id=0)
        prompt, clock = torch.tensor([self.tokens]), TokenTimes()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=clock)
        self.generated.append(clock.per_token)

    def _rewound(self, step: Step) -> Step:
        def prepare() -> None:
            self.runner.rewind(PROMPT)
            if step.prepare is not None:
                step.prepare()

        return Step(step.run, prepare)


def measure(name: str, asked: argparse.Namespace) -> Row:
    """The figures of one shape, as JSON."""
    shape = SHAPES[name] | (TINY if asked.tiny else {})
    tokens = torch.randint(2**31, (PROMPT,), generator=torch.Generator().manual_seed(1)).tolist()
    try:
        family = Timed(name, shape, asked, tokens)
    except UnsupportedModelError as error:
        return {"refused": str(error)}
    llama = Timed(f"llama like {name}", llama_like(shape), asked, tokens)
    kernels = read_kernels(torch.device("cpu"), family.loaded.dtype, largest_matrix(family.loaded), family.runner)
    sizes = {kernel.name: kernel.run() for kernel in kernels}
    steps = {**family.steps("family"), **llama.steps("llama"), **{kernel.name: kernel.step for kernel in kernels}}
    steps |= {"generate": Step(family.generate)}
    rounds = TimingRounds(least=3, most=3 if asked.tiny else asked.rounds)
    seconds = time_steps(family.runner, steps, rounds)
    seconds["generate"] = family.generated[1:]  # the first round warms up
    return _figures(family, llama, find_limit(kernels, sizes, seconds), seconds)


def _figures(family: Timed, llama: Timed, limit: Limit, seconds: Mapping[str, list[float]]) -> Row:
    read, twin = family.bytes_of(), llama.bytes_of()
    rate = [limit.num_bytes / taken for taken in limit.seconds]
    decode = seconds["family decode"]

    def by_round(ratio: Callable[[int], float]) -> Row:
        return spread([ratio(number) for number in range(len(decode))])

    def per_byte(number: int, step: str) -> float:
        ours, theirs = seconds[f"family {step}"][number], seconds[f"llama {step}"][number]
        return (ours / read[step]) / (theirs / twin[step])

    def of_share(draft: str, number: int) -> float:
        return seconds[f"family {draft}"][number] / decode[number] / (read[draft] / read["decode"])

    return {
        "parameters": sum(parameter.numel() for parameter in family.loaded.model.parameters()),
        "runner": family.runner.name,
        "limit": {"kernel": limit.name, "bytes_per_second": limit.bytes_per_second},
        "bytes": read,
        "llama_bytes": twin,
        "seconds": dict(seconds),
        "decode_of_limit": by_round(lambda n: read["decode"] / decode[n] / rate[n]),
        "decode_over_llama": by_round(lambda n: per_byte(n, "decode")),
        "verify_over_llama": by_round(lambda n: per_byte(n, "verify")),
        "verify_over_decode": by_round(lambda n: seconds["family verify"][n] / decode[n]),
        "generate_over_decode": by_round(lambda n: seconds["generate"][n] / decode[n]),
        "drafts": {name: by_round(partial(of_share, name)) for name in family.drafts()},
    }


def spread(ratios: Sequence[float]) -> Row:
    """Median and quartiles."""
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {"median": middle, "low": low, "high": high}


def print_table(console: Console, shapes: Mapping[str, Row]) -> None:
    """A row a shape; each ratio with its quartiles."""
    table = text.table("shape", "decode, of limit", "verify(4), of Llama's", "draft, of its share", "generate / decode")
    for name, row in shapes.items():
        if "refused" in row:
            continue
        drafts = "\n".join(f"{_said(ratio)} {draft}" for draft, ratio in row["drafts"].items())
        ratios = (_said(row[key]) for key in ("decode_of_limit", "verify_over_llama"))
        table.add_row(name, *ratios, drafts, _said(row["generate_over_decode"]))
    console.print(table)
    for name, row in shapes.items():
        if "refused" in row:
            console.print(f"{name} is refused: {row['refused']}")


def _said(ratio: Row) -> str:
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}–{ratio['high']:.2f}]"


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="which (default: all)")
    parser.add_argument("--runner", default="native", help="native, fast or auto (default: native)")
    parser.add_argument("--rounds", type=int, default=15, help="values of each step (default: 15)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32: checks the script alone")
    asked = parser.parse_args()
    found: Row = {"schema": SCHEMA, "version": 1, "tiny": asked.tiny, "shapes": {}}
    for name in asked.shapes:
        print(f"{name} …", flush=True)
        found["shapes"][name] = measure(name, asked)
        gc.collect()
        if asked.out is not None:
            write_json_atomic(asked.out, found | {"provenance": collect()})
    print_table(Console(), found["shapes"])
    return 0


if __name__ == "__main__":
    run(main)
