import pytest
import torch

from selfspec_tune.cpu import LEVELS, Level
from selfspec_tune.errors import NativeUnavailableError, UsageError
from selfspec_tune.models import devices
from selfspec_tune.models.devices import choose_device, choose_dtype, cpu_computes_bfloat16

CPU = torch.device("cpu")


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cuda:3", r"torch sees \d+ GPU"), ("tpu9", "Unknown device 'tpu9'"), ("meta", "not supported")],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=reason):
        choose_device(device)


def test_a_named_dtype_is_taken() -> None:
    assert choose_dtype("bfloat16", CPU) is torch.bfloat16


def test_an_unknown_dtype_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="auto, float32, bfloat16, float16"):
        choose_dtype("int8", CPU)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_whether_a_cpu_computes_bfloat16_is_its_level_s(monkeypatch: pytest.MonkeyPatch, level: Level) -> None:
    monkeypatch.setattr(devices, "chosen_level", lambda: level)
    assert cpu_computes_bfloat16() is level.name.endswith("bf16")


def test_a_processor_without_kernels_is_not_trusted_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen_level() -> Level:
        raise NativeUnavailableError("there are kernels for x86-64 and aarch64, and this is riscv64")

    monkeypatch.setattr(devices, "chosen_level", chosen_level)
    assert cpu_computes_bfloat16() is False


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (None, torch.bfloat16),
    ],
)
def test_auto_on_a_cpu_is_the_checkpoint_s_own(
    monkeypatch: pytest.MonkeyPatch, own: torch.dtype | None, expected: torch.dtype, computes: bool
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: computes)
    assert choose_dtype("auto", CPU, own) is expected


@pytest.mark.parametrize(("computes", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_turns_float16_into_what_the_cpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, computes: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "cpu_computes_bfloat16", lambda: computes)
    assert choose_dtype("auto", CPU, torch.float16) is expected


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu_has_sixteen_bits(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_dtype("auto", torch.device("cuda")) is dtype


def test_a_gpu_that_only_emulates_bfloat16_is_refused_it_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(devices, "_multiply", lambda dtype, device: None)
    with pytest.raises(UsageError, match="Tesla T4 does not compute in bfloat16") as refusal:
        choose_dtype("bfloat16", torch.device("cuda"))
    assert str(refusal.value).endswith("Use `dtype` float32 or float16.")


def test_a_dtype_that_the_device_has_no_kernel_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(dtype: torch.dtype, device: torch.device) -> None:
        if dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(devices, "_multiply", multiply)
    with pytest.raises(UsageError, match="not implemented for 'Half'") as refusal:
        choose_dtype("float16", CPU)
    assert "`dtype` float32 or bfloat16" in str(refusal.value)


@pytest.mark.parametrize("dtype", devices.DTYPES)
def test_this_cpu_multiplies_in_every_dtype(dtype: str) -> None:
    assert choose_dtype(dtype, CPU) is devices.DTYPES[dtype]
