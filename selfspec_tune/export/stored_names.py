"""How a checkpoint names a model's tensors: as it loads them, transformers renames some, packs experts, cuts others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.export.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


class StoredNames:
    """The tensors of a checkpoint by the tensor of ``model``, an empty one, that each is or is a part of.

    Attributes:
        stored: all names in the checkpoint.
        of: the model's name of each stored tensor, of the first where several are cut from it; one that the model does
            not load has none.
        parts: the stored tensors of each of the model's, in the order in which they are packed.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        conversions = get_model_conversion_mapping(model)
        self.stored = tuple(sorted(names, key=dot_natural_key))
        self._model = model
        self._known: dict[str, Any] = model.state_dict()
        self._renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        self._converters = [one for one in conversions if isinstance(one, WeightConverter)]
        self._patterns: dict[str, str | None] = {}
        self.of: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {}
        self._firsts: dict[str, str] = {}  # of those cut from one stored tensor, the first
        for stored in self.stored:
            name, pattern = self._renamed(stored)
            if name in self._known:
                self.of[stored] = name
                self._patterns[stored] = pattern
                for made in self._made(name, pattern):
                    self.parts.setdefault(made, []).append(stored)
                    self._firsts[made] = name

    def _renamed(self, stored: str) -> tuple[str, str | None]:
        """As transformers does it: the name, and the pattern of what packs it."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        name, pattern = rename_source_key(stored, self._renamings, self._converters, prefix, self._known)
        if name not in self._known and stored in self._known:
            return rename_source_key(stored, [], [], prefix, self._known)
        return name, pattern

    def _converter(self, pattern: str) -> Any:
        return next(one for one in self._converters if pattern in one.source_patterns)

    def _made(self, name: str, pattern: str | None) -> list[str]:
        """What the model has of a stored tensor that it knows by ``name``: that, and what else is cut from it."""
        if pattern is None:
            return [name]
        first, *others = self._converter(pattern).target_patterns
        return [name, *(made for other in others if (made := name.replace(first, other)) in self._known)]

    def renumbered(self, stored: str, layers: str, number: int, as_module: bool) -> str:
        """The name of the same tensor in another layer, there or, ``as_module``, in the model.

        ``layers``: their path in the model. Raises `UnsupportedModelError` where the stored name tells no layer.
        """
        old, _, rest = self.of[stored].removeprefix(f"{layers}.").partition(".")
        wanted, prefix = f"{layers}.{number}.{rest}", f"{self._model.base_model_prefix}."
        if as_module:
            return wanted
        parts = stored.split(".")
        for place, part in enumerate(parts):
            if part == old:
                name = ".".join((*parts[:place], str(number), *parts[place + 1 :]))
                if self._renamed(name)[0].removeprefix(prefix) == wanted.removeprefix(prefix):
                    return name
        raise UnsupportedModelError(f"{stored} is stored by a name without the number of its layer. Use `to` hf-zero.")

    @property
    def missing(self) -> list[str]:
        """Weights of the model of which nothing is stored."""
        return sorted({name for name, _ in self._model.named_parameters()} - set(self.parts))

    def is_packed(self, name: str) -> bool:
        """Whether the model's tensor is made of stored ones, rather than stored itself."""
        return self._patterns[self.parts[name][0]] is not None

    def misshapen(self, checkpoint: Checkpoint, sources: Mapping[str, str]) -> list[str]:
        """Tensors of the model that are stored in another shape, packed ones apart.

        ``sources``: the checkpoint's name of each stored tensor.
        """
        direct = ((name, parts[0]) for name, parts in self.parts.items() if not self.is_packed(name))
        return [n for n, part in direct if tuple(self._known[n].shape) != checkpoint.tensors[sources[part]].shape]

    def read(self, checkpoint: Checkpoint, name: str) -> Tensor:
        """A tensor of the model by its name there. Raises `UnsupportedModelError` where it cannot be packed."""
        parts = self.parts[name]
        pattern = self._patterns[parts[0]]
        if pattern is None:
            return checkpoint.read(parts[0])
        converter, first = deepcopy(self._converter(pattern)), self._firsts[name]
        for part in parts:
            converter.add_tensor(first, part, self._patterns[part], checkpoint.read(part))
        made = converter.convert(first, model=self._model, config=self._model.config).get(name)
        tensor: Tensor | None = made[0] if isinstance(made, list) else made
        if tensor is None:
            raise UnsupportedModelError(f"{checkpoint.folder}: {name} cannot be put together from {parts[0]}, ….")
        return tensor
