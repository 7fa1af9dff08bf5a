"""The video discriminator, its blur pooling, and the adversarial losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from train.adversarial import LeCAM, discriminator_loss, generator_loss, r1_penalty
from train.discriminator import Conv3x3x3, Discriminator, blur_pool

DIMS = (8, 16, 16)


@pytest.fixture
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    net = Discriminator(DIMS)
    nn.init.normal_(net.head.weight)  # zero otherwise
    return net


def reference_pool(x: torch.Tensor) -> torch.Tensor:
    """Edges repeated, one separable depthwise convolution, every second sample."""
    k = torch.tensor([0.25, 0.5, 0.25])
    kernel = (k[:, None, None] * k[:, None] * k).expand(x.shape[1], 1, 3, 3, 3)
    return F.conv3d(F.pad(x, [1] * 6, mode="replicate"), kernel, stride=2, groups=x.shape[1])


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 4), (5, 1, 7), (8, 6, 2)])
def test_blur_pool_is_a_strided_binomial_convolution(size):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(blur_pool(x), reference_pool(x), atol=1e-6, rtol=0)


def test_blur_pool_removes_what_subsampling_would_alias():
    t, h, w = torch.meshgrid(torch.arange(5), torch.arange(8), torch.arange(8), indexing="ij")
    for wave in (h + w, w, t):  # checkerboard, stripes, flicker: +1 and -1 in turn
        x = (1 - 2.0 * (wave % 2))[None, None]
        assert (x[..., ::2, ::2, ::2] == 1).all()  # subsampling takes each for a plain surface
        pooled = blur_pool(x)
        if wave is t:
            pooled = pooled[:, :, 1:-1]  # at the edges the repeated sample remains
        else:
            pooled = pooled[..., 1:, 1:]
        assert pooled.abs().max() < 1e-6
    constant = torch.full((1, 1, 5, 6, 7), 0.7)
    torch.testing.assert_close(blur_pool(constant), torch.full((1, 1, 3, 3, 4), 0.7))


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 17, 30), (5, 16, 24), (9, 32, 16)])
def test_any_video_or_image_gives_a_logit_per_patch(discriminator, shape):
    video = torch.rand(2, 3, *shape) * 2 - 1
    with torch.no_grad():
        logits = discriminator(video)
        again = discriminator(video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3))
        single = discriminator(video[1:])
    assert logits.shape == (2, *(math.ceil(n / 2 ** len(DIMS)) for n in shape)) and logits.dtype == torch.float32
    torch.testing.assert_close(again, logits)  # memory layout does not matter
    torch.testing.assert_close(single, logits[1:])  # nor do the other clips


def test_what_the_discriminator_refuses():
    for dims in ((), (8, 0), (8, 1.5)):
        with pytest.raises(ValueError, match="dims="):
            Discriminator(dims)
    net = Discriminator((4,))
    for shape in ((1, 3, 16, 16), (1, 1, 1, 16, 16), (1, 3, 0, 16, 16), (1, 3, 2, 15, 16)):
        with pytest.raises(ValueError, match="need \\(B, 3, T, H, W\\)"):
            net(torch.zeros(shape))


def test_an_untrained_discriminator_says_nothing():
    video = torch.randn(1, 3, 2, 16, 16, requires_grad=True)
    logits = Discriminator(DIMS)(video)
    generator_loss(logits).backward()
    assert logits.abs().max() == 0 and video.grad.abs().max() == 0


def test_losses_against_their_formulas():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(generator_loss(fake), bce(fake, torch.ones(2)))
    torch.testing.assert_close(
        discriminator_loss(real, fake), bce(real, torch.ones(2)) + bce(fake, torch.zeros(2))
    )
    assert float(discriminator_loss(torch.zeros(3), torch.zeros(3))) == pytest.approx(2 * math.log(2))
    fake.requires_grad_()
    generator_loss(fake - 50).backward()
    torch.testing.assert_close(fake.grad, torch.full((2,), -0.5))  # does not saturate where fakes are found out


def test_r1_of_a_linear_discriminator_is_the_squared_norm_of_its_weights():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 2, 4, 4))

        def forward(self, video):
            return (video * self.w).sum((1, 2, 3, 4))[:, None, None, None].expand(-1, 1, 2, 2)  # four equal patches

    torch.manual_seed(0)
    net = Linear()
    penalty = r1_penalty(net, torch.randn(5, 3, 2, 4, 4))
    torch.testing.assert_close(penalty, net.w.square().sum())
    penalty.backward()
    torch.testing.assert_close(net.w.grad, 2 * net.w)


def test_r1_against_finite_differences(discriminator):
    net = discriminator.double()  # float32 differences of a piecewise linear network would drown in rounding
    net.head.float()
    torch.manual_seed(1)
    x, step = torch.randn(1, 3, 2, 16, 16), 1e-3
    net.stem.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    grad = torch.autograd.grad(net(x.requires_grad_()).mean(), x)[0]
    torch.testing.assert_close(r1_penalty(net, x), grad.square().sum())
    direction = grad / grad.norm()
    with torch.no_grad():
        slope = (net(x + step * direction).mean() - net(x - step * direction).mean()) / (2 * step)
    torch.testing.assert_close(slope.square(), r1_penalty(net, x).detach(), rtol=0.02, atol=0)


def test_r1_is_float32_and_twice_differentiable_under_autocast_and_no_grad(discriminator):
    video = torch.randn(2, 3, 3, 16, 16)
    expected = r1_penalty(discriminator, video)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        penalty = r1_penalty(discriminator, video)
    assert torch.equal(penalty, expected)
    penalty.backward()
    grads = [p.grad for name, p in discriminator.named_parameters() if name.endswith("weight")]
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in grads)


def test_double_backward_in_bfloat16_is_close_to_float32(discriminator):
    video = torch.randn(2, 3, 3, 16, 16, requires_grad=True)
    norms = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = discriminator(video)
        assert logits.dtype == torch.float32
        (grad,) = torch.autograd.grad(logits.sum(), video, create_graph=True)
        discriminator.zero_grad()
        grad.square().sum().backward()
        weights = [p.grad for name, p in discriminator.named_parameters() if name.endswith("weight")]
        assert all(g.isfinite().all() for g in weights)
        norms.append(torch.stack([g.norm() for g in weights]))
    torch.testing.assert_close(norms[1], norms[0], rtol=0.1, atol=0)


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_weight_gradients_in_bfloat16_are_those_of_float32_whatever_was_in_memory(n_frames):
    torch.manual_seed(0)
    conv, x = Conv3x3x3(16, 32), torch.randn(2, 16, n_frames, 4, 4)
    conv(x).square().mean().backward()
    expected = conv.weight.grad.clone()
    reference = torch.nn.grad.conv3d_weight(x, conv.weight.shape, 2 * conv(x) / conv(x).numel(), padding=1)
    torch.testing.assert_close(expected, reference, rtol=1e-4, atol=1e-6)
    for _ in range(5):
        conv.zero_grad()
        junk = [torch.full((n,), 1e30, dtype=torch.bfloat16) for n in (10**4, 10**5, 10**6)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        y.float().square().mean().backward()
        torch.testing.assert_close(conv.weight.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_lecam_against_hand_computed_values():
    lecam = LeCAM(decay=0.6, warmup=0)
    first = lecam(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -1.0]))  # averages 2 and -1
    assert float(first) == pytest.approx((2**2 + 4**2) / 2 + 3**2)
    lecam(torch.tensor([4.0]), torch.tensor([1.0]))  # second call: plain means 3 and 0
    assert (float(lecam.real), float(lecam.fake)) == (3, 0)
    third = lecam(torch.tensor([8.0]), torch.tensor([5.0]))  # 1/3 < 1 - decay = 0.4: 3 + 0.4 * 5 and 0 + 0.4 * 5
    assert (float(lecam.real), float(lecam.fake)) == pytest.approx((5, 2))
    assert float(third) == pytest.approx((8 - 2) ** 2 + (5 - 5) ** 2)


def test_lecam_pulls_each_kind_towards_the_average_of_the_other_and_not_before_it_is_warm():
    lecam = LeCAM(warmup=2)
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    for _ in range(2):
        loss = lecam(real, fake)
        loss.backward()
        assert float(loss.detach()) == 0 and real.grad.abs().max() == 0
    total = lecam(real, fake) + lecam(real, fake)  # two calls in one graph: averages are updated in place
    total.backward()
    assert (float(real.grad), float(fake.grad)) == (12, -12)
    assert not list(lecam.parameters())
    other = LeCAM(warmup=2)
    other.load_state_dict(lecam.state_dict())
    assert int(other.n_calls) == 4 and float(other.fake) == -1
    with pytest.raises(ValueError, match="decay=1"):
        LeCAM(decay=1)


@pytest.mark.parametrize("n_frames", [1, 3])
def test_discriminator_learns_to_tell_sharp_from_blurred(n_frames):
    torch.manual_seed(0)
    net = Discriminator(DIMS)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.0, 0.99))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        real = torch.randn(4, 3, n_frames, 16, 16).clamp(-1, 1)
        return real, F.avg_pool3d(real, (1, 3, 3), 1, (0, 1, 1))

    for _ in range(20):
        real, fake = batch()
        loss = discriminator_loss(net(real), net(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake = batch()
    with torch.no_grad():
        a, b = net(real).mean((1, 2, 3)), net(fake).mean((1, 2, 3))
    assert a.min() > b.max() and float(loss.detach()) < 1  # it starts at 2 log 2 = 1.39
