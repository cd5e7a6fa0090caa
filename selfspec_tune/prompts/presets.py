"""Data sets of the field, each with its columns, its hub home and our instruction wording.

The wordings end so that they suit both a chat template and a bare base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import Columns, Row, columns_of, first_present, to_prompts
from selfspec_tune.prompts.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Preset:
    """How to read one data set.

    ``text_columns`` are alternatives (published copies differ); ``wording`` surrounds
    ``{text}``; ``task`` is None where each row carries its own category. ``hub`` is
    (id, configuration, split), or None where the set is not on the hub.
    """

    name: str
    text_columns: tuple[str, ...]
    wording: str = "{text}"
    task: str | None = None
    hub: tuple[str, str | None, str] | None = None

    def prompts(self, rows: Sequence[Row], *, where: str) -> list[Prompt]:
        """The rows as prompts; `PromptError` if the set's columns are not there."""
        columns = columns_of(rows)
        column = first_present(self.text_columns, columns)
        if column is None:
            if not rows:
                return []
            raise PromptError(
                f"{where}: preset {self.name} expects a column {' or '.join(self.text_columns)}, "
                f"but the columns are {', '.join(columns)}. Leave the preset out or give that set's own file."
            )
        chosen = Columns(column, holds_turns=True)
        return to_prompts(rows, origin=self.name, columns=chosen, where=where, wording=self.wording, task=self.task)


_ALL = (
    Preset(
        "cnn-dailymail",
        ("article",),
        "Summarise this news article in one paragraph that keeps its main facts.\n\n{text}\n\nSummary:",
        "summarise",
        ("abisee/cnn_dailymail", "3.0.0", "test"),
    ),
    Preset(
        "xsum",
        ("document",),
        "Read this news report, then say in a few sentences what it is about.\n\n{text}\n\nIn short:",
        "summarise",
        ("EdinburghNLP/xsum", None, "test"),
    ),
    Preset(
        "gsm8k",
        ("question",),
        "Solve this problem step by step, then state the answer.\n\n{text}\n\nSolution:",
        "maths",
        ("openai/gsm8k", "main", "test"),
    ),
    Preset(
        "humaneval",
        ("prompt",),
        "Complete this Python function.\n\n{text}",
        "code",
        ("openai/openai_humaneval", None, "test"),
    ),
    Preset("mt-bench", ("prompt", "turns"), hub=("HuggingFaceH4/mt_bench_prompts", None, "train")),
    Preset("spec-bench", ("turns",)),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
