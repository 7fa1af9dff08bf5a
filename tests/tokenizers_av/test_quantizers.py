"""The quantizers of the video tokenizer: one interface, exact codes and entropies, parity with a library."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import vector_quantize_pytorch as vq

from tokenizers_av.video.bsq import BSQ
from tokenizers_av.video.fsq import FSQ
from tokenizers_av.video.lfq import LFQ, bit_entropies
from tokenizers_av.video.quantizer import Quantizer, make_quantizer

NAMES = ("lfq", "bsq", "fsq")


def make(name: str, bits: int = 8, entropy_group: int = 4) -> Quantizer:
    return make_quantizer(SimpleNamespace(quantizer=name, bits=bits, entropy_group=entropy_group))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 8, 18, 30])
def test_every_id_comes_back_from_its_code(name: str, bits: int) -> None:
    quantizer, size = make(name, bits), 2**bits
    ids = torch.arange(0, size, 1 if bits <= 18 else 9973)
    ids = torch.cat([ids, size - 1 - ids])
    codes = quantizer.codes(ids.view(2, -1))
    assert quantizer.codebook_size == size and codes.shape == (2, len(ids) // 2, quantizer.dim)
    assert torch.equal(quantizer.ids(codes).flatten(), ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_decoder_sees_in_training_what_ids_decode_to(name: str, dtype: torch.dtype) -> None:
    quantizer = make(name)
    z = 10 * latents(2, 3, 4, 5, quantizer.dim).to(dtype)
    quantized = quantizer(z)
    assert quantized.z_q.dtype == torch.float32 and quantized.ids.dtype == torch.int64
    assert quantized.ids.shape == (2, 3, 4, 5) and torch.equal(quantized.ids, quantizer.ids(z))
    assert torch.equal(quantized.z_q, quantizer.codes(quantized.ids))
    assert torch.equal(quantizer(z[0, 0, 0, 0]).z_q, quantized.z_q[0, 0, 0, 0])  # one position by itself


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_the_nearest_of_all_to_the_bounded_latent(name: str) -> None:
    quantizer = make(name)
    z = latents(500, quantizer.dim)
    bounded = quantizer(z, torch.ones(500, dtype=torch.bool)).z_q
    every = quantizer.codes(torch.arange(256))
    assert torch.equal(quantizer.ids(z), torch.cdist(bounded, every).argmin(-1))


def test_codes_are_in_the_stated_range_and_order() -> None:
    assert LFQ(8).codes(torch.tensor([5])).tolist() == [[1, -1, 1, -1, -1, -1, -1, -1]]  # bit 0 first
    assert torch.allclose(BSQ(8).codes(torch.arange(256)).norm(dim=-1), torch.ones(256))
    assert torch.allclose(FSQ(4).codes(torch.tensor([1 + 4 * 2])), torch.tensor([[-1 / 3, 1 / 3]]))


def test_gradient_passes_straight_through() -> None:
    weights = latents(50, 8, seed=1)
    grads = {}
    for name in NAMES:
        quantizer = make(name)
        z = latents(50, quantizer.dim).requires_grad_()
        (quantizer(z).z_q * weights[:, : quantizer.dim]).sum().backward()
        grads[name] = z.grad
        assert z.grad is not None and z.grad.isfinite().all() and (z.grad != 0).all()
    assert torch.equal(grads["lfq"], weights)
    along = (grads["bsq"] * latents(50, 8)).sum(-1)  # the length of a latent is free
    assert along.abs().max() < 1e-5
    expected = weights[:, :4] * (1 - torch.tanh(latents(50, 4)) ** 2)
    assert torch.allclose(grads["fsq"], expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_soft_samples_bypass_the_quantizer(name: str) -> None:
    quantizer = make(name)
    z = latents(2, 1, 2, 2, quantizer.dim)
    z_q, hard = quantizer(z, torch.tensor([True, False])).z_q, quantizer(z).z_q
    bounded = z[0] / z[0].norm(dim=-1, keepdim=True) if name == "bsq" else torch.tanh(z[0])
    assert torch.allclose(z_q[0], bounded, atol=1e-6)
    assert torch.equal(z_q[1], hard[1])


def entropies_by_table(logits: torch.Tensor, groups: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both entropies from a softmax over all codes of each group: the definition."""
    per_position = of_mean = torch.zeros(())
    for group in logits.split(groups, dim=-1):
        codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=group.shape[-1])))
        p = (group @ codes.T / 2).softmax(-1)
        per_position = per_position + torch.special.entr(p).sum(-1).mean()
        of_mean = of_mean + torch.special.entr(p.mean(0)).sum()
    return per_position, of_mean


@pytest.mark.parametrize("groups", [[8], [1] * 8, [3, 3, 2], [7, 1]])
def test_entropies_equal_the_sum_over_all_codes(groups: list[int]) -> None:
    results = []
    for function in (bit_entropies, entropies_by_table):
        logits = (3 * latents(60, 8)).requires_grad_()
        per_position, of_mean = function(logits, groups)
        (per_position - 2 * of_mean).backward()
        results.append(torch.cat([torch.stack([per_position, of_mean]), 60 * logits.grad.flatten()]).detach())
    assert (results[0] - results[1]).abs().max() < 2e-5


@pytest.mark.parametrize("inverse_temperature", [0.5, 2.0])
@pytest.mark.parametrize("spherical", [False, True])
def test_parity_with_the_library(spherical: bool, inverse_temperature: float) -> None:
    """Its bit logit is 4 * inverse temperature * x * code, ours 2 at a code; its first channel is the highest bit."""
    bits, z = 6, latents(1, 200, 6)
    theirs = vq.LFQ(dim=bits, spherical=spherical, commitment_loss_weight=1.0)
    ours = BSQ(bits, bits) if spherical else LFQ(bits, bits)
    (z_q, ids, _), terms = theirs(
        z, inv_temperature=inverse_temperature * (bits if spherical else 1), return_loss_breakdown=True
    )
    quantized = ours(z)
    assert (quantized.z_q - z_q).abs().max() < 1e-5
    assert torch.equal(quantized.ids, ours.ids(theirs.indices_to_codes(ids)))
    assert torch.equal(ours.ids(z.flip(-1)), ids)
    commitment = terms.commitment * (bits if spherical else 1)  # ours is the whole distance on the sphere
    assert torch.allclose(quantized.commitment_loss, commitment, atol=1e-5)
    x = (z / z.norm(dim=-1, keepdim=True) * bits**0.5 if spherical else z).flatten(0, 1)
    entropies = torch.stack(bit_entropies(4 * inverse_temperature * x, [bits]))
    expected = torch.stack([terms.per_sample_entropy, terms.batch_entropy])
    assert (entropies - expected).abs().max() < 2e-3, (entropies, expected)  # it clamps probabilities at 1e-5
    if inverse_temperature == 0.5:
        assert torch.allclose(quantized.entropy_loss, (expected[0] - expected[1]) / bits, atol=5e-4)


def test_fsq_ids_are_those_of_the_library() -> None:
    z = latents(1, 300, 5)
    codes, ids = vq.FSQ([4] * 5, preserve_symmetry=True)(z)
    quantized = FSQ(10)(z)
    assert torch.equal(quantized.ids, ids.long())
    assert torch.allclose(quantized.z_q, codes, atol=1e-6)
    assert quantized.entropy_loss == 0 and quantized.commitment_loss == 0


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_losses_of_saturated_and_of_zero_latents_have_finite_gradients(name: str) -> None:
    quantizer = make(name, 6, 6)
    for value in (0.0, 50.0, 1e4):  # one code, so that all others have probability zero
        z = torch.full((10, 6), value, requires_grad=True)
        quantized = quantizer(z)
        (quantized.entropy_loss + quantized.commitment_loss + quantized.z_q.sum()).backward()
        assert z.grad is not None and z.grad.isfinite().all(), value


def test_all_bits_of_a_large_codebook_fit_in_one_group() -> None:
    """Positions by codes would be 1.3 GB; what is kept for the gradient is a few tables of positions by 2^9."""
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    z = latents(1280, 18).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = LFQ(18, 18)(z).entropy_loss
    loss.backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0
    assert sum(kept.values()) < 20e6, sum(kept.values())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name: str) -> None:
    quantizer = make(name)
    z = latents(3, 40, quantizer.dim)
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
    assert torch.equal(plain.z_q, cast.z_q) and torch.equal(plain.ids, cast.ids)
    assert plain.entropy_loss == cast.entropy_loss and plain.commitment_loss == cast.commitment_loss


@pytest.mark.parametrize("name", NAMES)
def test_quantizers_have_nothing_to_store(name: str) -> None:
    assert not make(name).state_dict() and not list(make(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused(name: str) -> None:
    quantizer = make(name)
    for ids in (torch.tensor([0, 256]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"expected \[0, 255\]"):
            quantizer.codes(ids)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="expected an integer type"):
            quantizer.codes(torch.zeros(3, dtype=dtype))
    assert quantizer.codes(torch.tensor([255], dtype=torch.uint8)).shape == (1, quantizer.dim)
    assert quantizer.codes(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, quantizer.dim)
    for function in (quantizer, quantizer.ids):
        with pytest.raises(ValueError, match=r"expected \(\.\.\., [48]\)"):
            function(torch.zeros(2, 9))


def test_bad_sizes_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be even"):
        make("fsq", 9)
    with pytest.raises(ValueError, match="need at least 1"):
        make("bsq", 8, 0)
    with pytest.raises(ValueError, match=r"unknown quantizer 'vq', expected one of \['bsq', 'fsq', 'lfq'\]"):
        make("vq")
