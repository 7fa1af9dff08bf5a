from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lm.linear import FEW_ROWS, Compiled, Int8, Linear, Packed, frozen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Linear, Packed, Compiled])
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS + 3])
def test_products_and_what_is_fused_into_them(kind, dtype, rows):
    torch.manual_seed(0)
    weight, x, other = torch.randn(24, 40, dtype=dtype), torch.randn(rows, 40, dtype=dtype), torch.randn(rows, 24)
    if kind is Packed and not Packed.can(weight):
        pytest.skip(f"no oneDNN products in {dtype} on this machine")
    layer, product = kind(weight), F.linear(x.double(), weight.double())
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.02}
    for got, expected in (
        (layer(x), product),
        (layer.plus(x, other.to(dtype)), product + other),
        (layer.times(x, other.to(dtype)), product * other),
        (layer.silu(x), F.silu(product)),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, **tolerance)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_rounded_weights_are_within_half_a_step(rows):
    torch.manual_seed(0)
    weight = torch.randn(24, 40) * torch.logspace(-3, 3, 24)[:, None]
    weight[3] = 0
    layer, x = Int8(weight), torch.randn(rows, 40)
    rounded = layer.weight * layer.scale[:, None]
    assert layer.weight.dtype == torch.int8
    assert ((rounded - weight).abs() <= 0.5001 * weight.abs().amax(1, keepdim=True) / 127).all()
    torch.testing.assert_close(layer(x), F.linear(x, rounded), atol=1e-4, rtol=0.01)


def test_the_layout_is_chosen_by_what_the_step_needs():
    weight = torch.randn(8, 16)
    assert type(frozen(weight, torch.float32, int8=True)) is Int8
    assert type(frozen(weight, torch.float32, compiled=True)) is Compiled
    assert type(frozen(weight, torch.float64)) is Linear
    assert type(frozen(weight.to("meta"), torch.float32, compiled=True)) is Linear
    assert type(frozen(weight, torch.float32)) is (Packed if Packed.can(weight) else Linear)


def test_rows_are_multiplied_alike_whatever_stands_beside_them():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        layer, x = frozen(torch.randn(96, 64), dtype), torch.randn(32, 64).to(dtype)
        whole = layer(x)
        for rows in (2, 4, 6, 16):
            assert torch.equal(layer(x[:rows]), whole[:rows]), (dtype, rows)
