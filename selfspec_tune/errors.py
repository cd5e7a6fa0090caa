"""Every error the program raises on purpose, in one tree.

    SelfSpecError              exit code 1: the run failed
    ├── UsageError             exit code 2: what was asked for cannot be done
    │   ├── UnknownModelError  no such alias, directory, file or hub id
    │   ├── PromptError        a prompt source is missing, empty or unusable
    │   │   └── ContextError   one prompt does not fit the model's context
    │   ├── SkipSetError       a skip set does not parse or does not fit the model
    │   ├── FileFormatError    one of our files is missing, corrupt or of another version
    │   └── BudgetError        the budget allows nothing
    ├── UnsupportedModelError  the architecture's sub-layers cannot be separated
    │   └── UnsupportedPrecisionError  no kernel drafts at this precision here
    ├── NativeUnavailableError the native kernels cannot be had on this machine
    ├── ModelAccessError       the model exists but cannot be had (gated, no network)
    ├── RivalError             a method to compare with cannot run here (its row says so)
    ├── NonFiniteError         the model's logits are no numbers
    ├── StorageError           a result could not be written
    └── LosslessError          decoding gave other tokens than the model would

Each message says what was given, what was expected and how to fix it. It names a field in
backquotes, `max_new_tokens`, which the command line prints as its option. The CLI
formats them once, at its edge; a traceback is shown with ``debug`` only.
"""

from __future__ import annotations


class SelfSpecError(Exception):
    """Root of the tree. ``exit_code`` is what the command line exits with."""

    exit_code: int = 1


class UsageError(SelfSpecError):
    """The request itself is wrong: the user can fix it by asking differently."""

    exit_code = 2


class UnknownModelError(UsageError):
    """The model's name is no alias, local path or plausible hub id."""


class PromptError(UsageError):
    """A prompt source is missing, empty, too small or does not fit the model's context."""


class ContextError(PromptError):
    """A prompt is too long for the model's context; others of its source may fit."""


class SkipSetError(UsageError):
    """A skip set does not parse, or names sub-layers that the model does not have."""


class FileFormatError(UsageError):
    """A file is missing, corrupt, of another schema, or of a newer version."""


class BudgetError(UsageError):
    """The trial or time budget is zero, or too small for a single measurement."""


class UnsupportedModelError(SelfSpecError):
    """The model's attention and MLP sub-layers cannot be told apart or left out."""


class UnsupportedPrecisionError(UnsupportedModelError):
    """No kernel computes with such weights on this device, in this dtype or in this shape.

    A search leaves the precision out; a draft that asks for it by name fails.
    """


class NativeUnavailableError(SelfSpecError):
    """The native kernels cannot be had on this machine; the message says why."""


class ModelAccessError(SelfSpecError):
    """The model cannot be had from here: gated, not downloaded, or no network."""


class RivalError(SelfSpecError):
    """A method to compare with cannot decode on this model; ``arm_id`` names it, the message is the reason."""

    def __init__(self, arm_id: str, reason: str) -> None:
        super().__init__(reason)
        self.arm_id = arm_id


class NonFiniteError(SelfSpecError):
    """The model computes NaN, infinity or nothing where logits should be; whatever it drafts would be accepted."""


class StorageError(SelfSpecError):
    """A file could not be written (disk full, no permission)."""


class LosslessError(SelfSpecError):
    """Output differed from autoregressive decoding by more than a numerical tie."""
