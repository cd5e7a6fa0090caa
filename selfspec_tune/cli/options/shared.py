"""Options that several commands have: model, draft, output."""

from __future__ import annotations

from selfspec_tune.cli.options.option import OF_STUDY, Option, Panel
from selfspec_tune.draft import PolicyKind
from selfspec_tune.draft.sources import SOURCES
from selfspec_tune.requests import (
    DraftOptions,
    Dtype,
    ModelOptions,
    Objective,
    PolicyChoice,
    RunnerChoice,
)

SEARCHES = ("search", "compare")
READING = (*SEARCHES, "bench")
DECODING = (*READING, "generate")
_LOADING = (*DECODING, "doctor")
_PRECISIONS = "such as same, int4, 'int4 head int8' or 'int8 attn 0-3; int4 mlp 4-9'."
_OF_SKIP_FILE = {"default": "the skip.json's"}
_DRAWN_BY_STUDY = {"bench": _OF_SKIP_FILE, "generate": _OF_SKIP_FILE}


def complete_model(incomplete: str) -> list[str]:
    """Aliases that begin like ``incomplete``, for the shell's completion."""
    from selfspec_tune.models.aliases import ALIASES

    return [alias for alias in ALIASES if alias.startswith(incomplete.lower())]


MODEL = (
    Option(
        "model",
        str,
        "Alias (see `selfspec-tune models`), hub id, local directory or .gguf file.",
        DECODING,
        ModelOptions,
        metavar="M",
        panel=Panel.MODEL,
        completes=complete_model,
        differs={
            "bench": {"default": "the study's; needed with a skip set that names none"},
            "generate": {"help": "Alias, hub id, local directory or .gguf file.", "default": "the study's"},
        },
    ),
    Option(
        "revision",
        str,
        "Branch, tag or commit of a hub id.",
        _LOADING,
        ModelOptions,
        metavar="R",
        panel=Panel.MODEL,
        default="the hub's, and a study's own where one is resumed",
        differs={
            **{name: {"default": "the study's; without one the hub's"} for name in ("bench", "generate")},
            "doctor": {"default": "the hub's"},
        },
    ),
    Option(
        "dtype",
        Dtype,
        "Number format; auto: the checkpoint's own.",
        _LOADING,
        ModelOptions,
        panel=Panel.MODEL,
        differs={name: {"default": OF_STUDY} for name in ("bench", "generate")},
    ),
    Option("device", str, "cpu, cuda, cuda:1 …", _LOADING, ModelOptions, metavar="D", panel=Panel.MODEL),
    Option(
        "runner",
        RunnerChoice,
        "Engine; native needs a CPU, and kernels from a wheel or a C compiler; graphs needs a GPU.",
        _LOADING,
        ModelOptions,
        panel=Panel.MODEL,
    ),
    Option(
        "trust_remote_code",
        bool,
        "Run Python code that comes with the model.",
        _LOADING,
        ModelOptions,
        panel=Panel.MODEL,
    ),
    Option(
        "allow_pickle",
        bool,
        "Load weights that are not safetensors; they can run code.",
        _LOADING,
        ModelOptions,
        panel=Panel.MODEL,
    ),
)

DRAFT = (
    Option(
        "policy",
        PolicyChoice,
        "When a draft ends. auto searches cost-aware and threshold.",
        DECODING,
        DraftOptions,
        panel=Panel.DRAFT,
        differs={
            name: {"kind": PolicyKind, "help": "When a draft ends.", **_OF_SKIP_FILE} for name in ("bench", "generate")
        },
    ),
    Option(
        "max_draft_tokens",
        int,
        "Longest draft.",
        DECODING,
        DraftOptions,
        metavar="N",
        panel=Panel.DRAFT,
        default="found by the search",
        least=1,
        differs=_DRAWN_BY_STUDY,
    ),
    Option(
        "exit_threshold",
        float,
        "Draft probability below which a draft ends.",
        DECODING,
        DraftOptions,
        metavar="X",
        panel=Panel.DRAFT,
        default="found by the search",
        least=0.0,
        most=1.0,
        differs=_DRAWN_BY_STUDY,
    ),
    Option(
        "vocabulary",
        str,
        "Draft from the first N token ids only, and from those of the text.",
        SEARCHES,
        DraftOptions,
        metavar="auto|full|N",
        panel=Panel.DRAFT,
        flags=("--draft-vocab",),
    ),
    *(
        Option(
            name,
            bool,
            source.help,
            DECODING,
            DraftOptions,
            panel=Panel.DRAFT,
            default=name,
            flags=(f"--{name}/--no-{name}",),
            differs=_DRAWN_BY_STUDY,
        )
        for name, source in SOURCES.items()
    ),
    Option(
        "precision",
        str,
        f"Weights to draft with: auto, or {_PRECISIONS}",
        DECODING,
        DraftOptions,
        metavar="TEXT",
        panel=Panel.DRAFT,
        flags=("--draft-precision",),
        differs={
            name: {"help": f"Weights to draft with, {_PRECISIONS}", **_OF_SKIP_FILE} for name in ("bench", "generate")
        },
    ),
    Option(
        "experts",
        str,
        "Experts that a token goes to while drafting, in a mixture of experts: auto, same (as in the model), or fewer.",
        DECODING,
        DraftOptions,
        metavar="auto|same|K",
        panel=Panel.DRAFT,
        flags=("--draft-experts",),
        differs={
            name: {
                "help": "Experts that a token goes to while drafting: same (as in the model), or fewer.",
                "metavar": "same|K",
                **_OF_SKIP_FILE,
            }
            for name in ("bench", "generate")
        },
    ),
    Option(
        "extra_memory",
        str,
        "Most memory for low-precision copies of weights.",
        SEARCHES,
        DraftOptions,
        metavar="30%|2GiB|0",
        panel=Panel.DRAFT,
    ),
    Option(
        "objective",
        Objective,
        "shared: the draft uses the model's cache, as this program and model.generate can. standalone: it has its own, "
        "as a draft exported to a server has, which accepts less.",
        SEARCHES,
        DraftOptions,
        panel=Panel.DRAFT,
    ),
)

_ALL = (*_LOADING, "show", "export", "models", "reproduce")

OUTPUT = (
    Option("json", bool, "Print one JSON object and nothing else on standard output.", _ALL, panel=Panel.OUTPUT),
    Option(
        "quiet",
        bool,
        "Print the result only.",
        (*_LOADING, "reproduce"),
        panel=Panel.OUTPUT,
        flags=("--quiet", "-q"),
    ),
    Option("debug", bool, "Show the traceback of an error.", (*_ALL, "import"), panel=Panel.OUTPUT),
)
