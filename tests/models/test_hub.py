from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from selfspec_tune.errors import ModelAccessError, SelfSpecError, UnknownModelError
from selfspec_tune.models import access, load_model
from selfspec_tune.models.access import can_ask_hub, explain_load_failure
from selfspec_tune.models.origin import Origin
from tests import kit

LLAMA = Origin("llama-2-13b", "meta-llama/Llama-2-13b-hf", "hub", "meta-llama/Llama-2-13b-hf")


def explained(cause: Exception) -> SelfSpecError:
    """What the user is told when transformers wraps what the hub's client raised."""
    error = OSError("Can't load the model")
    error.__cause__ = cause
    return explain_load_failure(LLAMA, error, hub_was_asked=True)


def test_an_alias_is_loaded_from_the_cache_without_network(hub_cache: Path, tmp_path: Path) -> None:
    checkpoint = kit.tiny_llama(tmp_path / "llama-2", kv_heads=4)
    snapshot = kit.plant_in_hub_cache(hub_cache, "meta-llama/Llama-2-13b-hf", checkpoint)
    loaded = load_model("llama-2-13b", dtype="float32", device="cpu")
    assert (loaded.name, loaded.id, loaded.source) == ("llama-2-13b", LLAMA.id, "hub")
    assert loaded.provenance == f"hub, revision {snapshot.name}"


def test_a_hub_id_without_owner_is_loaded_from_the_cache(hub_cache: Path, tiny_llama_dir: Path) -> None:
    snapshot = kit.plant_in_hub_cache(hub_cache, "gpt2", tiny_llama_dir)
    loaded = load_model("gpt2", dtype="float32", device="cpu")
    assert (loaded.id, loaded.source, loaded.revision) == ("gpt2", "hub", snapshot.name)
    assert loaded.describe()["revision"] == snapshot.name


def test_an_absent_hub_id_without_owner_is_unknown_offline(hub_cache: Path) -> None:
    with pytest.raises(UnknownModelError, match="no hub id in the cache, and the hub cannot be asked"):
        load_model("gpt2", device="cpu")


def test_a_revision_that_the_hub_does_not_have_is_named() -> None:
    asked = replace(LLAMA, revision="v9")
    error = OSError("Can't load the model")
    error.__cause__ = RevisionNotFoundError.__new__(RevisionNotFoundError, "404")
    explanation = explain_load_failure(asked, error, hub_was_asked=True)
    assert isinstance(explanation, UnknownModelError)
    assert "has no revision 'v9'" in str(explanation)


@pytest.mark.parametrize("name", ["llama-2-13b", "someone/something"])
def test_an_absent_model_without_network_says_what_to_do(hub_cache: Path, name: str) -> None:
    with pytest.raises(ModelAccessError, match="Give a local directory") as refusal:
        load_model(name, device="cpu")
    assert "HF_HOME" in str(refusal.value)


def test_a_half_downloaded_model_without_network_says_so(hub_cache: Path, tiny_llama_dir: Path) -> None:
    snapshot = kit.plant_in_hub_cache(hub_cache, "someone/something", tiny_llama_dir)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelAccessError, match="not on this machine, or not wholly"):
        load_model("someone/something", device="cpu")


def test_what_the_cache_lacks_is_asked_for_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec_tune.models.load.can_ask_hub", lambda: True)
    with pytest.raises(ModelAccessError, match="cannot be asked"):  # the tests forbid the network itself
        load_model("someone/something", device="cpu")


def test_a_gated_model_says_how_to_get_in() -> None:
    error = explained(GatedRepoError.__new__(GatedRepoError, "403"))
    assert isinstance(error, ModelAccessError)
    assert "Accept it" in str(error)
    assert "hf auth login" in str(error)


def test_a_repository_that_the_hub_does_not_show_is_unknown() -> None:
    error = explained(RepositoryNotFoundError.__new__(RepositoryNotFoundError, "404"))
    assert isinstance(error, UnknownModelError)
    assert "Check the spelling" in str(error)


def test_a_broken_connection_is_no_access() -> None:
    assert isinstance(explained(ConnectionError("reset by peer")), ModelAccessError)


def test_an_error_that_causes_itself_is_explained() -> None:
    error = ValueError("around")
    error.__cause__ = error
    assert "around" in str(explain_load_failure(LLAMA, error, hub_was_asked=True))


def test_the_hub_is_not_asked_in_offline_mode() -> None:
    assert not can_ask_hub()


@pytest.mark.parametrize(("proxies", "expected"), [({}, False), ({"https": "http://proxy"}, True)])
def test_a_hub_without_address_is_asked_only_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], expected: bool
) -> None:
    def no_address(*_: object) -> None:
        raise OSError("name not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(access.urllib.request, "getproxies", lambda: proxies)
    monkeypatch.setattr(access.socket, "getaddrinfo", no_address)
    assert can_ask_hub() is expected
