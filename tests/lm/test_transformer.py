from __future__ import annotations

import math

import pytest
import torch

from lm import LM, LM_PRESETS, LMConfig, Vocabulary, lm_config
from lm.attention import Visibility, attend
from lm.norm import RMSNorm
from lm.rotary import angles, rotate


def close(a, b, tolerance=1e-5):
    worst = (a - b).abs().max().item()
    assert worst < tolerance, f"largest difference {worst:.2e}"


@pytest.mark.parametrize("training", [False, True])  # two ways through attention
def test_prefix_is_bidirectional_and_the_rest_causal(model, example, training):
    prefix_len, seen = torch.tensor([5, 1, 12]), torch.zeros(3, 12, 12, dtype=torch.bool)
    given = model.embed(example.ids).detach()

    def run(embedding):
        handle = model.embed.register_forward_hook(lambda *_: embedding)
        out = model(*example.rows(slice(None)), prefix_len)
        handle.remove()
        return out

    for i in range(12):
        embedding = given.clone().requires_grad_(training)
        if training:  # which inputs have a gradient
            (run(embedding)[:, i] * torch.randn(32)).sum().backward()
            seen[:, i] = embedding.grad.abs().amax(-1) > 0
        else:  # which outputs change
            embedding[:, i] += 1
            with torch.no_grad():
                seen[:, :, i] = (run(embedding) != run(given)).any(-1)
    i, j = torch.arange(12)[:, None], torch.arange(12)[None]
    for b, p in enumerate(prefix_len):
        assert torch.equal(seen[b], (j <= i) | ((i < p) & (j < p))), f"prefix_len {p}"


def slow_attention(q, k, v, visible):
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~visible.allowed[:, None], -math.inf).softmax(-1), v)


def slowly_allowed(n, prefix_len, block_size, real):
    """Who sees whom, one pair at a time."""

    def block(i, p):
        return -1 if i < p else (i - p) // block_size

    return torch.tensor([
        [[i == j or bool(block(j, p) <= block(i, p) and real[b, j]) for j in range(n)] for i in range(n)]
        for b, p in enumerate(prefix_len)
    ])  # fmt: skip


@pytest.mark.parametrize("block_size", [1, 2, 4])
@pytest.mark.parametrize("prefix_len", [(5, 1, 12), (4, 4, 4)])
def test_blocks_of_ids_see_each_other_and_what_came_before(block_size, prefix_len):
    real = torch.ones(3, 12, dtype=torch.bool)
    real[1, :2] = False
    for mask in (real, None):
        visible = Visibility(12, torch.tensor(prefix_len), mask, block_size)
        expected = slowly_allowed(12, prefix_len, block_size, torch.ones_like(real) if mask is None else mask)
        assert torch.equal(visible.allowed.expand(3, -1, -1), expected)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("prefix_len", [(1, 1), (130, 130), (120, 7), (250, 250)])
@pytest.mark.parametrize("block_size", [1, 16])
def test_attention_equals_its_definition(padding, prefix_len, block_size):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 250, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    real = torch.ones(2, 250, dtype=torch.bool)
    real[1, slice(0, 5) if padding == "left" else slice(240, 250)] = False
    visible = Visibility(250, torch.tensor(prefix_len), None if padding is None else real, block_size)
    expected = slow_attention(q, k, v, visible)
    weight = torch.randn_like(expected) * real[..., None, None]
    wanted = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    out = attend(q, k, v, visible)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for a, b in zip((out, *got), (expected, *wanted), strict=True):
        close(a, b)
    with torch.no_grad():
        close(attend(q, k, v, visible) * real[..., None, None], expected * real[..., None, None])


def test_norm_and_its_gradient_equal_the_definition():
    torch.manual_seed(0)
    norm, x = RMSNorm(24), torch.randn(5, 7, 24, requires_grad=True)
    with torch.no_grad():
        norm.weight.normal_()
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    weight = torch.randn_like(x)
    wanted = torch.autograd.grad((expected * weight).sum(), (x, norm.weight))
    out = norm(x)
    for a, b in zip(torch.autograd.grad((out * weight).sum(), (x, norm.weight)), wanted, strict=True):
        close(a, b)
    close(out, expected)
    with torch.no_grad():
        close(norm(x), expected)


def test_rotation_sees_differences_of_places_only(vocabulary):
    config = lm_config("tiny", vocabulary)
    q, k = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(p, s):
        turned = [rotate(x, a.cos(), a.sin()) for x, a in ((q, angles(p, config)), (k, angles(s, config)))]
        return (turned[0] * turned[1]).sum()

    p, s, shift = torch.tensor([3.0, 1, 2]), torch.tensor([9.0, 5, 0]), torch.tensor([40.0, 3, 7])
    close(score(p, s), score(p + shift, s + shift), 1e-4)
    assert all((score(p, s) - score(p + step, s)).abs() > 1e-3 for step in torch.eye(3))
    x = torch.randn(2, 3, 1, 64, requires_grad=True)
    a = angles(torch.rand(2, 3, 3) * 9, config)[:, :, None]
    assert torch.autograd.gradcheck(lambda x: rotate(x, a.cos().double(), a.sin().double()), x.double())
    compiled = torch.compile(rotate, fullgraph=True, backend="aot_eager")  # one graph, without breaks
    close(compiled(x, a.cos(), a.sin()), rotate(x, a.cos(), a.sin()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("grad", [False, True])
def test_padding_is_invisible(model, example, side, grad):
    ids, positions, following = example.rows(slice(0, 1))
    with torch.set_grad_enabled(grad):
        alone = model(ids[:, :9], positions[:, :9], following[:, :9], torch.tensor([4]))
        pad, left = (slice(0, 3), 3) if side == "left" else (slice(9, 12), 0)
        real = torch.ones(1, 12, dtype=torch.bool)
        real[:, pad] = False
        wide = [torch.zeros_like(x) + 7 for x in (ids, positions, following)]
        for w, x in zip(wide, (ids, positions, following), strict=True):
            w[real] = x[:, :9].flatten(0, 1)
        padded = model(*wide, torch.tensor([4 + left]), real)
    close(padded[real], alone[0])


@pytest.mark.parametrize("grad", [False, True])
def test_batch_equals_alone(model, example, grad):
    prefix_len = torch.tensor([5, 2, 9])
    with torch.set_grad_enabled(grad):
        together = model(*example.rows(slice(None)), prefix_len)
        for b in range(3):
            close(together[b], model(*example.rows(slice(b, b + 1)), prefix_len[b : b + 1])[0])


def test_next_place_changes_the_prediction(model, example):
    ids, positions, following = example.rows(slice(None))
    shifted = following.clone()
    shifted[:, 6, 1] += 1
    a, b = (model(ids, positions, f, torch.ones(3, dtype=torch.int64)) for f in (following, shifted))
    assert (a[:, :6] == b[:, :6]).all() and (a[:, 6:] != b[:, 6:]).any(-1).all()


@pytest.mark.parametrize("tie", [True, False])
def test_saved_and_loaded_gives_the_same(model, example, tmp_path, tie, vocabulary):
    if not tie:
        model = LM(lm_config("debug", vocabulary, tie_embeddings=False)).eval()
    model.save_pretrained(tmp_path, max_shard_size="15KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = LM.from_pretrained(tmp_path)
    assert again.vocabulary == model.vocabulary and again.config.rope_axes == model.config.rope_axes
    prefix_len = torch.tensor([5, 2, 9])
    with torch.no_grad():
        a, b = (m(*example.rows(slice(None)), prefix_len) for m in (model, again))
        assert torch.equal(a, b) and torch.equal(model.head_weight, again.head_weight)
        half = LM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        c = half(*example.rows(slice(None)), prefix_len)
    assert c.dtype == torch.bfloat16 and (c - a).abs().mean() < 0.1


def test_recomputing_activations_changes_no_gradient(model, example):
    def gradients():
        model.zero_grad()
        model.train()
        model(*example.rows(slice(None)), torch.tensor([5, 2, 9]), labels=example.ids).total.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    for module in model.modules():  # what (gradient|activation)_checkpointing_enable sets
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
                f, *a, use_reentrant=False
            )
    for a, b in zip(plain, gradients(), strict=True):
        close(a, b)


def test_bf16_autocast_trains_close_to_float32(model, example):
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(*example.rows(slice(None)), torch.tensor([5, 2, 9]), labels=example.ids)
        loss.total.backward()
        results.append((loss.total, torch.cat([p.grad.flatten() for p in model.parameters()])))
    (a, g), (b, h) = results
    assert abs(a - b) < 0.05 * a and torch.cosine_similarity(g, h, dim=0) > 0.98


def test_initial_scales(vocabulary):
    torch.manual_seed(0)
    model = LM(lm_config("debug", vocabulary, dim=64, n_layers=8))
    assert model.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for block in model.blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
        assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
        assert (block.mlp_norm.weight == 1).all()


@pytest.mark.parametrize(
    ("preset", "millions"), [("debug", 0.02), ("tiny", 6.3), ("300m", 302), ("1b", 1039), ("8b", 7852)]
)
def test_every_preset_has_its_size(preset, millions):
    with torch.device("meta"):
        model = LM(lm_config(preset, Vocabulary.build((), 2**18, (1024,) * 4, 512)))
    assert set(LM_PRESETS) == {"debug", "tiny", "300m", "1b", "8b"}
    assert model.n_parameters(embeddings=False) / 1e6 == pytest.approx(millions, rel=0.1)
    assert model.n_parameters() - model.n_parameters(False) == 267_008 * model.config.dim


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 30}, "dim=30"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"rope_axes": (1, 1, 1)}, "add up to head_dim / 2 = 8"),
        ({"depth": 3}, "unknown LMConfig fields"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_wrong_configs_say_what_is_wrong(vocabulary, fields, message):
    with pytest.raises(ValueError, match=message):
        lm_config("debug", vocabulary, **fields)


def test_config_survives_json(vocabulary, tmp_path):
    config = lm_config("debug", vocabulary, dropout=0.1)
    config.save_pretrained(tmp_path)
    again = LMConfig.from_pretrained(tmp_path)
    assert again.vocabulary == vocabulary.to_dict() and again.dropout == 0.1 and again.n_kv_heads == 1
    with pytest.raises(ValueError, match="unknown preset"):
        lm_config("huge", vocabulary)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_flex_attention_gives_the_same(model, example, tmp_path):
    model.save_pretrained(tmp_path)
    flex = LM.from_pretrained(tmp_path, attn_implementation="flex_attention").eval()
    assert flex.config._attn_implementation == "flex_attention" and model.config._attn_implementation == "sdpa"
    real = torch.ones(3, 12, dtype=torch.bool)
    real[1, :2] = False
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for mask in (None, real):
            rows = (*example.rows(slice(None)), torch.tensor([5, 3, 9]), mask)
            close(flex(*rows)[real], model(*rows)[real])
