import pytest
import torch

from selfspec_tune.errors import UsageError
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : sse avx512f avx512_bf16 sha", True),
        ("flags : amx_bf16 amx_tile", True),
        ("Features : asimd i8mm bf16", True),
        ("flags : sse avx2 avx512f", False),
        ("", False),
    ],
)
def test_bfloat16_is_read_off_the_flags_of_a_cpu(flags: str, expected: bool) -> None:
    assert cpu_computes_bfloat16(flags) is expected


@pytest.mark.parametrize(("flags", "dtype"), [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_auto_on_a_cpu_is_what_it_computes_in(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert choose_dtype("auto", CPU) is dtype


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
    assert str(refusal.value).endswith("Use --dtype float32 or float16.")


def test_a_dtype_that_the_device_has_no_kernel_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(dtype: torch.dtype, device: torch.device) -> None:
        if dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nmore")

    monkeypatch.setattr(devices, "_multiply", multiply)
    with pytest.raises(UsageError, match="not implemented for 'Half'") as refusal:
        choose_dtype("float16", CPU)
    assert "--dtype float32 or bfloat16" in str(refusal.value)


@pytest.mark.parametrize("dtype", devices.DTYPES)
def test_this_cpu_multiplies_in_every_dtype(dtype: str) -> None:
    assert choose_dtype(dtype, CPU) is devices.DTYPES[dtype]
