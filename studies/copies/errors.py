#!/usr/bin/env python3
"""How often a draft whose weights are copies of few bits differs from its target: copies of many kinds, no kernel.

    .venv/bin/python studies/copies/errors.py --out copies-135m --model smollm2-135m \\
        --code studies/smollm2-135m-strategies/bench.json --mixed studies/smollm2-135m-strategies/builtin.json \\
        --answers studies/engine-gpu/smollm2-135m-search-bench.json

Every copy is made as the values that its codes would stand for, in the model's type, and computes every position of
published answers as the first token of a draft would be: attending to the target's own keys and values. Counted are
positions whose most probable token is not the target's. ``--answers``: benches whose answers, to prompts that none of
the texts has, copies are fitted on besides the text that comes with the program.

Sub-layers are done one after the other, all copies together; what is needed to go on is kept after each in ``--out``.
With ``--seconds`` a call stops after so many; the same command goes on. The last writes ``--out``/results.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import study_kit as study
import torch
from formats import Format, learnt_levels, values
from passes import WIDE, CalibrationPass, DraftPass, TargetPass, block_of
from torch import Tensor

from selfspec_tune.draft import Precision
from selfspec_tune.engine.kernels.weights import NativeCopy
from selfspec_tune.engine.layers import quantize
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBitSettings
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.prompts import load_prompts, render

_TYPICAL = "typical"
_PIECE = 512  # positions whose logits are there at once


@dataclass(frozen=True, slots=True)
class Variant:
    """How copies are made.

    ``method``: same (no copy), packed (by the program), plain or gptq. ``texts``: kinds that it is fitted on, none:
    every error counts alike. ``block``: most inputs whose errors make up for each other. ``order``, ``damping``: see
    `formats`. ``levels`` and ``scale_bits``: of the format.
    """

    method: str
    texts: tuple[str, ...] = ()
    block: int = 128
    order: str = "given"
    damping: float = 0.01
    levels: int = 16
    scale_bits: int = 16

    @property
    def bits(self) -> float:
        """A weight."""
        return 16.0 if self.method == "same" else {16: 4.0, 8: 3.0}[self.levels] + self.scale_bits / 32


TYPICAL, BOTH = (_TYPICAL,), (_TYPICAL, "answers")
VARIANTS = {
    "same": Variant("same"),
    "packed": Variant("packed", TYPICAL),
    "packed, damping 0.1": Variant("packed", TYPICAL, damping=0.1),
    "packed, both": Variant("packed", BOTH),
    "packed, both, damping 0.1": Variant("packed", BOTH, damping=0.1),
    "plain": Variant("plain"),
    "plain, weighed": Variant("plain", TYPICAL),
    "128": Variant("gptq", TYPICAL),
    "128, damping 0.1": Variant("gptq", TYPICAL, damping=0.1),
    "128, inputs": Variant("gptq", TYPICAL, order="inputs"),
    "128, both": Variant("gptq", BOTH),
    "128, both, inputs": Variant("gptq", BOTH, order="inputs"),
    "512": Variant("gptq", TYPICAL, 512),
    "512, both": Variant("gptq", BOTH, 512),
    "wide": Variant("gptq", TYPICAL, WIDE),
    "wide, inputs": Variant("gptq", TYPICAL, WIDE, "inputs"),
    "wide, inputs, damping 0.1": Variant("gptq", TYPICAL, WIDE, "inputs", 0.1),
    "wide, both": Variant("gptq", BOTH, WIDE),
    "wide, both, groups": Variant("gptq", BOTH, WIDE, "groups"),
    "wide, both, inputs": Variant("gptq", BOTH, WIDE, "inputs"),
    "wide, both, inputs, damping 0.1": Variant("gptq", BOTH, WIDE, "inputs", 0.1),
    "4.25 bits": Variant("gptq", TYPICAL, scale_bits=8),
    "3.5 bits": Variant("gptq", TYPICAL, levels=8),
    "3.25 bits": Variant("gptq", TYPICAL, levels=8, scale_bits=8),
    "wide, both, inputs, 3.25 bits": Variant("gptq", BOTH, WIDE, "inputs", levels=8, scale_bits=8),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows of ``domains``, in this order, the prompt of each, and texts to fit copies on by kind."""

    windows: list[Window]
    domains: list[str]
    prompts: list[str]
    fitted: list[tuple[str, list[int]]]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--code", required=True, help="a bench.json whose answers are code")
    parser.add_argument("--mixed", required=True, help="a bench.json whose answers are of many kinds")
    parser.add_argument("--answers", nargs="*", default=[], help="bench.json files to fit copies on")
    parser.add_argument("--prompts", type=int, help="of each text, the first; default: all")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), metavar="NAME", help="default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which a call stops")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.variants if name not in VARIANTS]:
        raise UsageError(f"--variants {unknown[0]!r}: expected some of {', '.join(map(repr, VARIANTS))}.")
    return arguments


def answers(file: str, loaded: LoadedModel) -> dict[str, tuple[list[int], list[int]]]:
    """The tokens of each prompt in a bench and of its answer, by the prompt's id."""
    runs = read_json(Path(file))["runs"]
    found: dict[str, tuple[list[int], list[int]]] = {}
    sources = sorted({run["prompt_id"].partition("/")[0].lower() for run in runs})
    known = {prompt.id: prompt for source in sources for prompt in load_prompts(source)}
    for run in runs:
        if run["prompt_id"] not in found and run.get("text"):
            tokens = render(known[run["prompt_id"]], loaded.tokenizer)
            found[run["prompt_id"]] = tokens, loaded.tokenizer(run["text"], add_special_tokens=False)["input_ids"]
    return found


def read_texts(arguments: argparse.Namespace, loaded: LoadedModel) -> Texts:
    """What the benches hold."""
    texts = Texts([], [], [], [])
    for domain in ("code", "mixed"):
        found = answers(getattr(arguments, domain), loaded)
        for prompt_id, (prompt, answer) in list(found.items())[: arguments.prompts]:
            if len(answer) > 1:
                texts.windows.append(Window((*prompt, *answer), len(prompt), len(prompt) + len(answer) - 1))
                texts.domains.append(domain)
                texts.prompts.append(prompt_id)
    texts.fitted.append((_TYPICAL, quantize.typical_text(loaded, loaded.vocabulary_size)[: loaded.context_length]))
    others = {name: text for file in arguments.answers for name, text in answers(file, loaded).items()}
    others = {name: text for name, text in others.items() if name not in texts.prompts}
    fitted = list(others.values())[: arguments.prompts]
    texts.fitted.extend(("answers", [*prompt, *answer]) for prompt, answer in fitted)
    return texts


class Copies:
    """Makes the values of copies of one linear layer, whose inputs' sums of products are given by kind of text."""

    def __init__(self, counts: Mapping[str, int], levels: Mapping[int, Tensor], folder: Path) -> None:
        self._counts, self._levels, self._folder = counts, levels, folder

    def made(self, dense: Dense, variant: Variant, products: Mapping[str, Tensor]) -> Tensor:
        """[outputs, inputs] in the model's type."""
        inputs = int(dense.weight.shape[1])
        fitted = [kind for kind in variant.texts if kind in products]
        size = block_of(inputs, variant.block)
        mean = torch.eye(size).expand(inputs // size, -1, -1)
        if fitted:
            mean = sum((products[kind] for kind in fitted), torch.zeros(())) / sum(self._counts[k] for k in fitted)
        if variant.method == "packed":
            return _packed(dense, _narrowed(mean, block_of(inputs, 128)), variant.damping)
        kind = Format(self._levels[variant.levels], variant.scale_bits)
        moments, is_plain = _narrowed(mean, block_of(inputs, variant.block)), variant.method == "plain"
        made = values(dense.weight, kind, moments, variant.order, variant.damping, self._folder, is_plain=is_plain)
        return made.to(dense.weight.dtype)


def _narrowed(products: Tensor, size: int) -> Tensor:
    """Blocks [blocks, size, size] on the diagonal of wider ones."""
    parts = range(0, products.shape[1], size)
    return torch.stack([block[at : at + size, at : at + size] for block in products for at in parts])


def _packed(dense: Dense, products: Tensor, damping: float) -> Tensor:
    """By the program's own packer."""
    quantize._DAMPING = damping
    copy = NativeCopy(dense, Precision.INT4, LowBitSettings(symmetric=True), quantize.Moments.of(products))
    made = torch.empty_like(dense.weight)
    copy._dequantise(0, made)
    return made


class Study:
    """All variants through the sub-layers, one after the other."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._out: Path = arguments.out
        self._names: list[str] = arguments.variants
        self._ends = perf_counter() + arguments.seconds
        self._loaded = load_model(arguments.model, dtype="bfloat16", device="cpu")
        self._runner = FastRunner(self._loaded)
        self._texts = read_texts(arguments, self._loaded)
        self._target = TargetPass(self._runner, self._texts.windows)
        self._draft = DraftPass(self._runner, self._texts.windows, self._target)
        blocks = [VARIANTS[name].block for name in self._names]
        self._fitted = CalibrationPass(self._runner, self._texts.fitted, max(blocks))
        self._file = self._out / "state.pt"
        if self._file.exists():
            self._state: dict[str, Any] = torch.load(self._file)
        else:
            levels = {8: learnt_levels(self._runner._linear_layers(1)[0].weight, 8)}
            levels[16] = learnt_levels(self._runner._linear_layers(1)[0].weight, 16)
            self._state = {"done": 0, "target": self._target.embedded, "fitted": self._fitted.embedded}
            self._state |= {name: self._draft.embedded for name in self._names} | {"levels": levels}
        self._copies = Copies(self._fitted.counts, self._state["levels"], self._out)

    @torch.inference_mode()
    def run(self) -> dict[str, Any] | None:
        """The results; None where the time has run out."""
        state, count = self._state, 2 * self._runner.num_layers
        while state["done"] < count:
            index, begun = state["done"], perf_counter()
            state["target"] = self._target.through(Stream(*state["target"]), index, Precision.SAME)
            state["fitted"] = self._fitted.through(Stream(*state["fitted"]), index, Precision.SAME)
            for name in self._names:
                with _Replaced(self._copies, self._runner._linear_layers(index), name, self._fitted.products):
                    state[name] = self._draft.through(Stream(*state[name]), index, Precision.SAME)
            state["done"] = index + 1
            torch.save({key: tuple(v) if isinstance(v, Stream) else v for key, v in state.items()}, self._file)
            print(f"sub-layer {index + 1} of {count}: {perf_counter() - begun:.1f} s", flush=True)
            if perf_counter() > self._ends:
                return None
        return self._results()

    def _results(self) -> dict[str, Any]:
        head = self._runner._head
        rows = self._target.own
        targets = self._tops(Stream(*self._state["target"]).hidden[rows])
        inputs = head.normalised(Stream(*self._state["fitted"]).hidden)
        self._fitted.products = {}
        self._fitted.note(0, inputs)
        found = {}
        for name in self._names:
            hidden = Stream(*self._state[name]).hidden
            own = (self._tops(hidden) != targets).tolist()
            with _Replaced(self._copies, (head.dense,), name, self._fitted.products):
                copied = (self._tops(hidden) != targets).tolist()
            found[name] = {"own head": self._by_prompt(own), "head copied": self._by_prompt(copied)}
            print(f"{name}: {sum(own)} {sum(copied)} of {len(own)}", flush=True)
        windows = self._texts.windows
        return {
            "model": self._loaded.name,
            "fitted_tokens": self._fitted.counts,
            "prompts": [
                {"id": prompt, "domain": domain, "positions": window.end - window.start}
                for prompt, domain, window in zip(self._texts.prompts, self._texts.domains, windows, strict=True)
            ],
            "variants": {name: {"bits": VARIANTS[name].bits, "wrong": wrong} for name, wrong in found.items()},
        }

    def _tops(self, hidden: Tensor) -> Tensor:
        return torch.cat([self._runner.head(piece).argmax(-1) for piece in hidden.split(_PIECE)])

    def _by_prompt(self, wrong: Sequence[bool]) -> list[str]:
        """Which positions of each window are wrong, with spaces between."""
        found, start = [], 0
        for window in self._texts.windows:
            length = window.end - window.start
            found.append(" ".join(str(i) for i in range(length) if wrong[start + i]))
            start += length
        return found


class _Replaced:
    """Within, linear layers hold a variant's values; afterwards their own again."""

    def __init__(
        self, copies: Copies, layers: Sequence[Dense], name: str, products: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        self._copies, self._layers, self._variant, self._products = copies, layers, VARIANTS[name], products

    def __enter__(self) -> None:
        self._held = []
        if self._variant.method == "same":
            return
        for number, dense in enumerate(self._layers):
            made = self._copies.made(dense, self._variant, self._products[number])
            self._held.append((dense.weight, dense.weight.clone()))
            dense.weight.copy_(made)

    def __exit__(self, *_: object) -> None:
        for weight, own in self._held:
            weight.copy_(own)


def main() -> int:
    """One piece of the study."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(arguments, name) for name in ("model", "code", "mixed", "answers", "prompts", "variants")}
    study.settle(arguments.out / "settings.json", asked)
    results = Study(arguments).run()
    if results is None:
        print("The time is up; the same command goes on from here.")
        return 75
    write_json_atomic(arguments.out / "results.json", study.without_paths(results))
    return 0


if __name__ == "__main__":
    study.run(main)
