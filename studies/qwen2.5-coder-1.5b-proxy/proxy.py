#!/usr/bin/env python3
"""How faithful the proxy's predictions are: drafts of every quality, predicted without decoding, then decoded.

    .venv/bin/python studies/qwen2.5-coder-1.5b-proxy/proxy.py --out studies/proxy --model MODEL_DIRECTORY \\
        --prompts humaneval

With a machine to itself:

1. the model answers the calibration and the selection prompts; step costs and importance are measured;
2. drafts (random, importance prefixes, a greedy path, local moves, with ``--study`` a search's own) are predicted
   by the token-exact proxy and, as drafts that stand alone, by the standalone one, under every policy of
   ``--policies``;
3. of each variant ``--sets`` are taken, evenly over predicted decode speedup;
4. each is really decoded: sharing the full model's cache beside plain decoding on the same text and on answers to
   held-out prompts; standing alone, with a cache of its own, on the same text, where only counts mean anything.

Everything is kept as it comes: the same command goes on where it was stopped. The results are written to
``--out``/results.json, and README.md and faithfulness.svg are made from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import faithfulness
import study_kit as study
from proxy_study import ProxyStudy

from selfspec_tune.draft import PolicyKind
from selfspec_tune.errors import UsageError
from selfspec_tune.files import write_atomic, write_json_atomic
from selfspec_tune.report.plot import check_matplotlib
from selfspec_tune.report.progress import PlainReporter
from selfspec_tune.requests import DraftOptions, ExtraMemory, ModelOptions, PromptOptions, SearchRequest
from selfspec_tune.search.setup import open_setup
from selfspec_tune.search.stages.calibration import TEXTS
from selfspec_tune.search.study import StudyFolder


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--num-prompts", type=int, default=64, help="a quarter calibrates, a quarter is held out")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="same, int8, int4, or auto: chosen for each sub-layer")
    parser.add_argument("--extra-memory", default="30%", help="of the model, for low-precision copies of one draft")
    parser.add_argument("--vocabulary", default="auto", help="token ids that drafts cover: auto, full or a number")
    parser.add_argument("--no-ngram", action="store_true", help="drafts look nothing up in the context")
    parser.add_argument("--policies", default="cost-aware,threshold,fixed", help="the first one builds the pool")
    parser.add_argument("--study", type=Path, help="a search's folder, whose candidates are studied too")
    parser.add_argument("--sets", type=int, default=40, help="drafts of each variant to decode")
    parser.add_argument("--pool", type=int, default=240, help="drafts to predict")
    parser.add_argument("--lowest", type=float, default=0.5, help="least predicted decode speedup of a draft")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=50, help="tokens of each window; a run ends with it")
    parser.add_argument("--depths", type=int, default=TEXTS[-1].depths, help="tokens of a draft told apart")
    parser.add_argument("--rounds", type=int, default=1, help="of the timed runs")
    parser.add_argument("--cost-seconds", type=float, default=75.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.policies = arguments.policies.split(",")
    known = [kind.value for kind in PolicyKind]
    if unknown := [kind for kind in arguments.policies if kind not in known]:
        raise UsageError(f"--policies {','.join(unknown)}: expected some of {', '.join(known)}.")
    for name, least in (("sets", 3), ("pool", 3), ("windows", 1), ("length", 4), ("depths", 1), ("rounds", 1)):
        if getattr(arguments, name) < least:
            raise UsageError(f"--{name} {getattr(arguments, name)}: expected at least {least}.")
    return arguments


def request(arguments: argparse.Namespace) -> SearchRequest:
    """The search whose proxy is studied."""
    drafting: dict[str, Any] = {"policy": arguments.policies[0], "precision": arguments.precision}
    drafting |= {"vocabulary": arguments.vocabulary, "ngram": not arguments.no_ngram}
    drafting |= {"extra_memory": ExtraMemory.parse(arguments.extra_memory)}
    prompts = PromptOptions(
        source=arguments.prompts,
        num_prompts=arguments.num_prompts,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
    )
    model = ModelOptions(arguments.model, arguments.dtype, runner=arguments.runner)
    return SearchRequest(arguments.out, model, prompts, DraftOptions(**drafting))


def main() -> int:
    """Measure what is missing, then write the results and what is made from them."""
    arguments = parsed()
    check_matplotlib("The picture of this study")
    out: Path = arguments.out
    own = ("policies", "sets", "pool", "lowest", "windows", "length", "depths", "rounds")
    with StudyFolder(out).locked():
        reporter = PlainReporter(sys.stdout)
        setting = open_setup(request(arguments), reporter)
        asked = {name: getattr(arguments, name) for name in own}
        searched = None if arguments.study is None else arguments.study.name
        study.settle(out / "settings.json", {**setting.config().to_dict(), **asked, "study": searched})
        results = study.without_paths(ProxyStudy(arguments, setting, reporter).run())
        write_json_atomic(out / "results.json", results)
        faithfulness.draw(results["drafts"], out / "faithfulness.svg")
        lines = faithfulness.readme(results, study.command_line(), "faithfulness.svg")
        write_atomic(out / "README.md", "\n".join(lines))
    print(
        "\n".join(
            [*faithfulness.comparison_table(results["comparisons"]), "", faithfulness.speed_line(results["proxy"])]
        )
    )
    return 0


if __name__ == "__main__":
    study.run(main)
