import subprocess
import sys

import pytest

from selfspec_tune.models.aliases import ALIASES, DEFAULT_MODEL, close_aliases, resolve


@pytest.mark.parametrize(
    ("name", "hub_id", "num_layers"),
    [
        ("llama-2-13b", "meta-llama/Llama-2-13b-hf", 40),
        ("llama-2-70b-chat", "meta-llama/Llama-2-70b-chat-hf", 80),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 32),
        ("qwen2.5-coder-1.5b-instruct", "Qwen/Qwen2.5-Coder-1.5B-Instruct", 28),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3", 32),
    ],
)
def test_an_alias_stands_for_a_hub_id(name: str, hub_id: str, num_layers: int) -> None:
    alias = resolve(name)
    assert alias is not None
    assert (alias.hub_id, alias.num_layers) == (hub_id, num_layers)


def test_case_does_not_matter_in_an_alias() -> None:
    assert resolve("Llama-2-13B") is ALIASES["llama-2-13b"]


def test_another_name_is_no_alias() -> None:
    assert resolve("llama-2-14b") is None


def test_exactly_the_default_model_is_embedded() -> None:
    assert [name for name, alias in ALIASES.items() if alias.embedded] == [DEFAULT_MODEL]


def test_every_alias_has_a_hub_id_and_a_size() -> None:
    for name, alias in ALIASES.items():
        assert alias.hub_id.count("/") == 1, name
        assert alias.num_layers > 0
        assert alias.params > 0


def test_llama_models_are_marked_as_gated() -> None:
    assert ALIASES["llama-2-13b"].gated
    assert ALIASES["llama-3.1-8b-instruct"].gated
    assert not ALIASES["qwen2.5-7b"].gated


def test_a_misspelt_alias_has_close_ones() -> None:
    assert close_aliases("lama-2-13b")[0] == "llama-2-13b"


def test_the_alias_table_needs_no_torch() -> None:
    code = (
        "import sys; from selfspec_tune.models import ALIASES;"
        "from selfspec_tune.models.origin import find_origin;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
