"""Models that compute by code of their own: whether it can be run at all, and decoded with."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from selfspec_tune.errors import FileFormatError, SelfSpecError, UnsupportedModelError, UsageError
from selfspec_tune.models.loaded import LoadedModel, keep_logits

_HOMES = ("transformers_modules", "dynamic_module_utils")  # where transformers keeps such code, and what reads it
_NEEDED = (
    "Needed is a forward pass as those of transformers: it takes input_ids, use_cache and past_key_values, adds its "
    "keys and values to the DynamicCache that it is given there, and returns an object with logits "
    "[batch, tokens, vocabulary]"
)
_REMEDY = "Mend that code, or give a checkpoint of an architecture that transformers has itself."


def explain_own_code(name: str, error: Exception, text: str) -> SelfSpecError | None:
    """The error for code that came with model ``name`` and cannot be had or run; None where it is not to blame.

    ``text``: what ``error`` and its causes say.
    """
    if missing := re.search(r"does not appear to have a file named (\S+\.py)", text):
        return FileFormatError(
            f"The config.json of model {name!r} names code in {missing[1]}, which is not there. Get its files again, "
            "the code too."
        )
    if missing := re.search(r"requires the following packages[^:]*: (.+?)\. Run", text):
        return UsageError(
            f"The code that came with model {name!r} needs what is not installed: pip install "
            f"{missing[1].replace(',', '')}."
        )
    if any(home in frame.filename for home in _HOMES for frame in traceback.extract_tb(error.__traceback__)):
        return UnsupportedModelError(
            f"The code that came with model {name!r} fails while it is loaded: {_in_words(error)}. It may be of "
            f"another release of transformers. {_REMEDY}"
        )
    return None


@contextmanager
def without_exit(name: str) -> Iterator[None]:
    """Raise `UnsupportedModelError` where the code that came with model ``name`` would end the program."""
    try:
        yield
    except SystemExit as error:
        raise UnsupportedModelError(
            f"The code that came with model {name!r} ends the program (sys.exit({error.code})). {_REMEDY}"
        ) from error


def check_own_code(loaded: LoadedModel) -> None:
    """Try a pass and a step with a cache of a model whose class is not transformers' own; others are known.

    Raises `UnsupportedModelError` that names the class, what it did, and what is needed.
    """
    if type(loaded.model).__module__.partition(".")[0] == "transformers":
        return
    cache = DynamicCache()
    for done, num_tokens in ((0, 2), (2, 1)):
        try:
            with without_exit(loaded.name):
                output = _pass(loaded, cache, done, num_tokens)
        except SelfSpecError:
            raise
        except Exception as error:  # theirs, which may raise anything
            raise _unfit(loaded.model, f"its forward pass fails ({_in_words(error)})") from error
        if reason := _unfit_reason(output, cache, done + num_tokens):
            raise _unfit(loaded.model, reason)


@torch.inference_mode()
def _pass(loaded: LoadedModel, cache: DynamicCache, done: int, num_tokens: int) -> Any:
    model, device = loaded.model, loaded.device
    head: Any = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ValueError("get_output_embeddings gives no layer with a weight")
    where = {}
    if loaded.takes_positions:
        where["position_ids"] = torch.arange(done, done + num_tokens, device=device)[None]
    return model(
        input_ids=torch.zeros(1, num_tokens, dtype=torch.long, device=device),
        use_cache=True,
        **where,
        **keep_logits(model, num_tokens),
        **{loaded.cache_argument: cache},
    )


def _unfit_reason(output: Any, cache: DynamicCache, length: int) -> str | None:
    """What keeps us from decoding with what a pass gave, after which the cache should hold ``length`` tokens."""
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        return f"its forward pass returns a {type(output).__name__} without logits"
    if logits.dim() != 3 or not logits.is_floating_point():
        return f"the logits of its forward pass are {list(logits.shape)} of {logits.dtype}"
    if (held := cache.get_seq_length()) != length:
        return f"its forward pass leaves {held} tokens in the cache that it was given, of {length}"
    return None


def _unfit(model: PreTrainedModel, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} computes by code of its own, and {reason}. {_NEEDED}. {_REMEDY}"
    )


def _in_words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
