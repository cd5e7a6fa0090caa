"""Options of the commands that read and write files of drafts, of doctor and of reproduce."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.cli.options.option import Option, Panel
from selfspec_tune.cli.options.shared import complete_model
from selfspec_tune.draft.dialects import Dialect
from selfspec_tune.requests import GGUF_WEIGHTS, DoctorRequest, DraftFormat, ExportRequest

_SHOW = (
    Option(
        "path",
        Path,
        "A study's folder, a skip.json, a bench's or a sweep's result; with --model any dialect's file.",
        ("show",),
        metavar="PATH",
        default="the newest study",
        is_argument=True,
    ),
    Option(
        "model",
        str,
        "Model, where the file does not name it: alias or local directory.",
        ("show",),
        metavar="M",
        completes=complete_model,
    ),
)

_EXPORT = (
    Option(
        "source",
        Path,
        "skip.json, or any dialect's file with --model.",
        ("export",),
        ExportRequest,
        metavar="SKIP.json",
        is_required=True,
        is_argument=True,
    ),
    Option(
        "to",
        str,
        f"A skip-set dialect ({', '.join(Dialect)}), or a draft that runs ({', '.join(DraftFormat)}).",
        ("export",),
        ExportRequest,
        metavar="FORMAT",
        is_required=True,
    ),
    Option(
        "model",
        str,
        "Model, where the file does not lead to it; for a draft anything that loads.",
        ("export",),
        ExportRequest,
        metavar="M",
        completes=complete_model,
    ),
    Option("task", str, "Task, for dialects that key by it.", ("export",), metavar="T"),
    Option(
        "out",
        Path,
        "File of a dialect, folder of a draft.",
        ("export",),
        ExportRequest,
        metavar="PATH",
        default="standard output",
    ),
    Option(
        "force",
        bool,
        "Replace the file, or what an earlier export left in the folder.",
        ("export",),
        ExportRequest,
    ),
    Option(
        "revision",
        str,
        "Branch, tag or commit of the model on the hub.",
        ("export",),
        ExportRequest,
        metavar="R",
        panel=Panel.OTHER_RUNTIMES,
        default="the study's",
    ),
    Option(
        "gguf",
        Path,
        "The target's GGUF file, for --to gguf.",
        ("export",),
        ExportRequest,
        metavar="F",
        panel=Panel.OTHER_RUNTIMES,
    ),
    Option(
        "weights",
        str,
        f"Of a GGUF draft: {', '.join(GGUF_WEIGHTS)}.",
        ("export",),
        ExportRequest,
        metavar="W",
        panel=Panel.OTHER_RUNTIMES,
    ),
    Option(
        "draft_tokens",
        int,
        "Tokens a draft, at most.",
        ("export",),
        ExportRequest,
        metavar="N",
        panel=Panel.OTHER_RUNTIMES,
        default="the search's",
    ),
    Option(
        "verify",
        bool,
        "Run the draft in its runtime, which must be installed (transformers is): does it say what our engine says, "
        "and draft as often right?",
        ("export",),
        panel=Panel.OTHER_RUNTIMES,
    ),
)

_IMPORT = (
    Option(
        "source",
        str,
        "Any dialect's file, or FILE#KEY for one entry.",
        ("import",),
        metavar="FILE",
        is_required=True,
        is_argument=True,
    ),
    Option("model", str, "The model that it is for, at hand here.", ("import",), metavar="M", is_required=True),
    Option("out", Path, "The skip.json to write.", ("import",), metavar="F", value=Path("skip.json")),
    Option("revision", str, "Branch, tag or commit of a hub id.", ("import",), metavar="R", default="the hub's"),
    Option("force", bool, "Replace a file that is there.", ("import",)),
)

_DOCTOR = (
    Option(
        "model",
        str,
        "Model to time: alias, hub id, local directory or .gguf file.",
        ("doctor",),
        DoctorRequest,
        metavar="M",
        default="the machine alone",
        completes=complete_model,
    ),
    Option(
        "skip_set",
        str,
        "What drafts: a skip set such as 'attn 2-9 · mlp 3,5', or a file of any dialect.",
        ("doctor",),
        DoctorRequest,
        metavar="TEXT|FILE",
        default="every third layer",
    ),
    Option(
        "contexts",
        str,
        "Tokens of context to time at, the first most thoroughly.",
        ("doctor",),
        DoctorRequest,
        metavar="N,N…",
        default="128,512,2048,8192, as far as model and time allow",
    ),
)

_REPRODUCE = (
    Option(
        "study",
        Path,
        "Folder of a study with a reproduce.toml.",
        ("reproduce",),
        metavar="STUDY",
        is_required=True,
        is_argument=True,
    ),
    Option(
        "out",
        Path,
        "New folder for what is measured.",
        ("reproduce",),
        metavar="DIR",
        default="studies/STUDY-again",
    ),
    Option(
        "set",
        str,
        "Another value for a setting of the study, such as a model.",
        ("reproduce",),
        metavar="NAME=VALUE",
        is_repeated=True,
    ),
    Option(
        "step",
        str,
        "Run this step only; may be repeated.",
        ("reproduce",),
        metavar="NAME",
        default="all",
        is_repeated=True,
    ),
    Option("dry_run", bool, "Print steps and claims, and run nothing.", ("reproduce",)),
)

OPTIONS = (*_SHOW, *_EXPORT, *_IMPORT, *_DOCTOR, *_REPRODUCE)
