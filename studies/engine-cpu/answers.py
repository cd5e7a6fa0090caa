#!/usr/bin/env python3
"""What the Python API costs beside the engine alone: answers of `Model.generate`, and the first token of a stream.

    .venv/bin/python studies/engine-cpu/answers.py smollm2-135m --dtype bfloat16

Each prompt is answered by `Model.generate` and by the self-speculative arm of a bench, in turns, on one runner with one
draft; in the first pair the one begins, in the second the other. Both are timed from outside, tokenising and text
included on the one side, and the ratio of all times is given with a 95 % interval by prompts. Then the first piece of a
stream is timed beside the prefill of the same prompt of about ``--prefix`` tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from study_kit import run

import selfspec_tune as st
from selfspec_tune.engine import Limits, Sampler, self_speculative
from selfspec_tune.engine.decoding import RawGeneration, plain_rounds
from selfspec_tune.errors import LosslessError, UsageError
from selfspec_tune.intervals import Interval, cluster_bootstrap
from selfspec_tune.model.model import tokens_of
from selfspec_tune.prompts import Template


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    begun = perf_counter()
    work()
    return perf_counter() - begun


def paired(first: Callable[[], object], second: Callable[[], object], number: int) -> tuple[float, float]:
    """Seconds of both, the second one first where ``number`` is odd."""
    if number % 2:
        late = seconds(second)
        return seconds(first), late
    return seconds(first), seconds(second)


def answers(model: st.Model, prompts: list[str], max_new_tokens: int, rounds: int) -> Interval:
    """Tokens per second of `Model.generate` over those of the arm.

    Raises `UsageError` without a draft, and `LosslessError` where both answer otherwise.
    """
    if model.draft is None:
        raise UsageError("There is no draft to compare with. Give a study, or a model with lookup.")
    draft, runner, ours, arms, clusters = model.draft, model._runner, [], [], []
    given: list[tuple[int, ...]] = []
    limits = Limits(max_new_tokens, frozenset(model._loaded.eos_token_ids))
    for number, prompt in enumerate(prompts * rounds):
        tokens = tokens_of(prompt, model._loaded, Template.AUTO)

        def decode(tokens: list[int] = tokens) -> None:
            given.append(tuple(self_speculative(runner, tokens, limits, Sampler(), draft, model.costs).tokens))

        def generate(prompt: str = prompt) -> None:
            given.append(model.generate(prompt, max_new_tokens=max_new_tokens).tokens)

        arm, own = paired(decode, generate, number + number // len(prompts))
        if given[-1] != given[-2]:
            raise LosslessError(f"Model.generate answers {prompt!r:.60} otherwise than bench's arm does.")
        arms.append(arm)
        ours.append(own)
        clusters.append(prompt)
    return cluster_bootstrap(arms, ours, clusters)


def first_token(model: st.Model, prompt: str, times: int) -> tuple[int, float, float]:
    """The prompt's tokens, and median seconds up to the first piece of a stream, and of the prefill alone."""
    tokens = tokens_of(prompt, model._loaded, Template.AUTO)

    def stream() -> None:
        answer = model.stream(prompt, max_new_tokens=2)
        next(answer)
        answer.close()

    def prefill() -> None:
        rounds = plain_rounds(model._runner, tokens, Limits(2), Sampler(), RawGeneration())
        next(rounds)
        rounds.close()

    pairs = [paired(stream, prefill, number) for number in range(times)]
    return len(tokens), median(first for first, _ in pairs), median(alone for _, alone in pairs)


def main() -> int:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="a study, a skip.json, or a model alone")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--runner", help="auto, native, graphs, fast or reference")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="pairs of each prompt")
    parser.add_argument("--prefix", type=int, default=100, help="tokens of the prompt before a first token")
    parser.add_argument("--times", type=int, default=21, help="first tokens")
    asked = parser.parse_args()
    model = st.load(asked.source, dtype=asked.dtype, runner=asked.runner)
    print(f"{model.describe()}.")
    prompts = [prompt.text for prompt in st.load_prompts("builtin", num_prompts=asked.num_prompts)]
    found = answers(model, prompts, asked.max_new_tokens, asked.rounds)
    print(
        f"Model.generate: {found.value:.3f}× the tokens per second of bench's arm [{found.low:.3f}–{found.high:.3f}], "
        f"{len(prompts)} prompts, {asked.rounds} pairs of each, {asked.max_new_tokens} tokens."
    )
    words = "the sun rises over the sea and the wind turns "
    ids = model._loaded.tokenizer(words * asked.prefix)["input_ids"]
    count = asked.prefix - len(tokens_of("a", model._loaded, Template.AUTO)) + 1
    length, first, alone = first_token(model, model.text_of(ids[: max(count, 1)]), asked.times)
    print(
        f"First token of a prompt of {length} tokens: {1e3 * first:.1f} ms, {first / alone:.3f}× the prefill "
        f"({1e3 * alone:.1f} ms), medians of {asked.times}."
    )
    return 0


if __name__ == "__main__":
    run(main)
