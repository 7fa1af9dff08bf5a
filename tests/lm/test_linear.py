from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lm.linear import FEW_ROWS, Compiled, Int8, Linear, OneDNN, Packed, frozen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "compiling"), [(Linear, False), (OneDNN, False), (Compiled, False), (Compiled, True)])
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS + 3])
def test_products_and_what_is_fused_into_them(kind, compiling, dtype, rows, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    weight, x, other = torch.randn(24, 40, dtype=dtype), torch.randn(rows, 40, dtype=dtype), torch.randn(rows, 24)
    if kind is OneDNN and not Packed.can(weight):
        pytest.skip(f"no oneDNN products in {dtype} on this machine")
    gate, norm = torch.randn(24, 40, dtype=dtype), torch.rand(rows, 1) + 4
    layer, product = kind(weight), F.linear(x.double(), weight.double())
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.02}
    for got, expected in (
        (layer(x), product),
        (layer.plus(x, other.to(dtype)), product + other),
        (layer.over(x, norm), product / norm),
        (layer.swiglu(x, norm, kind(gate)), F.silu(product / norm) * F.linear(x.double(), gate.double()) / norm),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, **tolerance)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_rounded_weights_are_within_half_a_step(rows, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    weight = torch.randn(24, 40) * torch.logspace(-3, 3, 24)[:, None]
    weight[3] = 0
    layer, x = Int8(weight), torch.randn(rows, 40)
    rounded = layer.weight * layer.scale[:, None]
    assert layer.weight.dtype == torch.int8
    assert ((rounded - weight).abs() <= 0.5001 * weight.abs().amax(1, keepdim=True) / 127).all()
    torch.testing.assert_close(layer(x), F.linear(x, rounded), atol=1e-4, rtol=0.01)
    unit = layer.over(x, x.norm(dim=1, keepdim=True))
    torch.testing.assert_close(unit, F.linear(F.normalize(x), rounded), atol=1e-4, rtol=0.01)


def test_the_layout_is_chosen_by_what_the_step_needs():
    weight = torch.randn(8, 16)
    assert type(frozen(weight, torch.float32, int8=True)) is Int8
    assert type(frozen(weight, torch.float32, compiled=True)) is Compiled
    assert type(frozen(weight, torch.float64)) is Linear
    assert type(frozen(weight.to("meta"), torch.float32, compiled=True)) is Linear
    assert type(frozen(weight, torch.float32)) is (OneDNN if Packed.can(weight) else Linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [64, 1536, 3072])  # for a single row of many inputs there are kernels of their own
def test_rows_are_multiplied_alike_whatever_stands_beside_them(dtype, inputs):
    torch.manual_seed(0)
    layer, x = frozen(torch.randn(512, inputs), dtype), torch.randn(32, inputs).to(dtype)
    other, norm, gate = torch.randn(32, 512).to(dtype), torch.rand(32, 1) + 4, frozen(torch.randn(512, inputs), dtype)
    for rows in (1, 2, 4, 5, 6, 16):
        few, beside = x[:rows], other[:rows]
        assert torch.equal(layer(few), layer(x)[:rows]), rows
        assert torch.equal(layer.plus(few, beside), layer.plus(x, other)[:rows]), rows
        assert torch.equal(layer.swiglu(few, norm[:rows], gate), layer.swiglu(x, norm, gate)[:rows]), rows
