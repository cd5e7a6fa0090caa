"""``selfspec-tune show``: a study, a skip.json or a bench.json for people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.arguments import STUDIES
from selfspec_tune.cli import bench as bench_module
from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.errors import FileFormatError

if TYPE_CHECKING:
    from selfspec_tune.results import BenchResult, ExportManifest, SkipConfig

SKIP_FILE = "skip.json"
BENCH_FILE = "bench.json"
_SHOWN = "Expected a study's folder, a skip.json, the result of a bench or of a sweep, or an export."


@command("show")
def show(asked: Asked) -> None:
    """Print what was found: verdict, skip set, layer map, scores and where they come from."""
    chosen = asked["path"] if asked["path"] is not None else newest_study(STUDIES)
    if asked["model"] is not None and not chosen.is_dir():  # a study and an export name their own
        _show_dialect(chosen, asked["model"], json=asked["json"])
        return
    other = _read_other(chosen)
    if other is not None:
        other(json=asked["json"])
        return
    config, bench = read_results(chosen)
    if asked["json"]:
        output.print_json(_plain(chosen, config, bench))
    else:
        _print(config, bench)


def _show_dialect(path: Path, model: str, *, json: bool) -> None:
    """The skip set of another project's file, as text and layer map."""
    from selfspec_tune.draft.dialects import read_skip_set
    from selfspec_tune.export import known_num_layers
    from selfspec_tune.report.text import MAP_LEGEND, layer_map_rows

    skip_set, dialect = read_skip_set(path, num_layers=known_num_layers(model))
    if json:
        output.print_json({"dialect": dialect, "num_layers": skip_set.num_layers, "skip": skip_set.to_dict()})
        return
    console = output.result_console()
    for line in (f"{model} · {dialect}", *layer_map_rows(skip_set, console.width), MAP_LEGEND, f"skip set  {skip_set}"):
        console.print(line, markup=False)


def newest_study(studies: Path) -> Path:
    """The study under ``studies`` whose skip.json is newest. Raises `FileFormatError` if there is none."""
    from selfspec_tune.results.skip_config import newest_skip_file

    found = newest_skip_file(studies)
    if found is None:
        raise FileFormatError(
            f"There is no study with a {SKIP_FILE} under {studies}/. "
            "Name a file or folder, or make one with `selfspec-tune search`."
        )
    return found.parent


def _read_other(path: Path) -> Callable[..., None] | None:
    """What prints the sweep, the bench in another runtime or the export that is there; None if it is something else.

    Raises `FileFormatError`.
    """
    from selfspec_tune.files import read_json
    from selfspec_tune.results import MANIFEST, BenchResult, ExportManifest, RuntimeBench, SkipConfig, SweepResult

    if path.is_dir() and (path / MANIFEST).is_file():
        path = path / MANIFEST
    if path.suffix == ".toml":
        raise FileFormatError(f"{path} says how results were made, and holds none. Give its folder, {path.parent}.")
    value = None if path.is_dir() else read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema == SweepResult.SCHEMA:
        return partial(bench_module.print_sweep_result, SweepResult.from_dict(value, origin=str(path)))
    if schema == RuntimeBench.SCHEMA:
        return partial(bench_module.print_runtime_result, RuntimeBench.from_dict(value, origin=str(path)))
    if schema == ExportManifest.SCHEMA:
        return partial(_print_export, ExportManifest.from_dict(value, origin=str(path)), path.parent)
    is_ours = isinstance(schema, str) and schema.startswith("selfspec-tune/")
    if is_ours and schema not in (SkipConfig.SCHEMA, BenchResult.SCHEMA):
        raise FileFormatError(f"{path} holds {schema}, which is not shown. {_SHOWN}")
    return None


def _print_export(manifest: ExportManifest, folder: Path, *, json: bool) -> None:
    from selfspec_tune.report.export import print_export, print_verification

    if json:
        output.print_json(manifest.to_dict())
        return
    console = output.result_console()
    print_export(console, manifest, folder)
    if manifest.verified is not None:
        print_verification(console, manifest.verified)


def read_results(path: Path) -> tuple[SkipConfig | None, BenchResult | None]:
    """What a study's folder or a single file holds; at least one of the two.

    Raises `FileFormatError` where there is neither, or a file cannot be read.
    """
    from selfspec_tune.files import read_json
    from selfspec_tune.results import BenchResult, SkipConfig

    if path.is_dir():
        return _read_folder(path)
    value = read_json(path)
    if isinstance(value, dict) and value.get("schema") == BenchResult.SCHEMA:
        return None, BenchResult.from_dict(value, origin=str(path))
    return SkipConfig.from_dict(value, origin=str(path)), None


def _read_folder(folder: Path) -> tuple[SkipConfig | None, BenchResult | None]:
    from selfspec_tune.results import BenchResult, SkipConfig

    skip_file, bench_file = folder / SKIP_FILE, folder / BENCH_FILE
    config = SkipConfig.load(skip_file) if skip_file.exists() else None
    bench = BenchResult.load(bench_file) if bench_file.exists() else None
    if config is None and bench is None:
        raise FileFormatError(
            f"{folder} holds neither {SKIP_FILE} nor {BENCH_FILE}. If its search was stopped, "
            "run the same search command again."
        )
    return config, bench


def _plain(path: Path, config: SkipConfig | None, bench: BenchResult | None) -> dict[str, Any]:
    """The file's own object; for a folder both, as ``search --json`` prints them."""
    found = {
        "skip_config": config.to_dict() if config is not None else None,
        "bench": bench.to_dict() if bench is not None else None,
    }
    if path.is_dir():
        return {**found, "out": str(path)}
    return found["skip_config"] or found["bench"] or {}


def _print(config: SkipConfig | None, bench: BenchResult | None) -> None:
    from selfspec_tune.report.bench import print_bench
    from selfspec_tune.report.search import print_skip_config

    console = output.result_console()
    if config is not None:
        print_skip_config(console, config)
    if config is not None and bench is not None:
        console.print()
    if bench is not None:
        print_bench(console, bench)
