"""What transformers and the hub's client print while they load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars or warnings inside; afterwards as before, so that downloads show theirs."""
    were_disabled = are_progress_bars_disabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not were_disabled:
            logging.enable_progress_bar()
