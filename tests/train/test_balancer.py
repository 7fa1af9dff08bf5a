"""The loss balancer: shares of the gradient, whatever the scale of the losses."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from train.balancer import Balancer


def gradient(balancer: Balancer, losses: dict[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    (g,) = torch.autograd.grad(balancer.combine(losses, output), output)
    return g


def clip_norm(g: torch.Tensor) -> float:
    return float(g.flatten(1).norm(dim=1).mean())


def test_single_backward_equals_hand_computation():
    torch.manual_seed(0)
    w, x = torch.randn(5, 7, requires_grad=True), torch.randn(3, 5)
    balancer = Balancer({"a": 1.0, "b": 3.0}, decay=0.5, total_norm=2.0)
    norms: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    for step in range(3):
        output = x @ w
        losses = {"a": (step + 1) * output.square().mean(), "b": 50 * (output[:, 2:] - 1).abs().mean()}
        own = {name: 3 * torch.autograd.grad(loss, output, retain_graph=True)[0] for name, loss in losses.items()}
        expected = torch.zeros_like(output)
        for name, share in (("a", 0.25), ("b", 0.75)):
            norms[name].append(own[name].norm(dim=1).mean())
            ages = torch.tensor([0.5 ** (step - i) for i in range(step + 1)])
            average = (ages * torch.stack(norms[name])).sum() / ages.sum()
            expected += 2 * share * own[name] / average / 3
        other = 0.1 * w.square().sum()
        w.grad = None
        (balancer.combine(losses, output) + other).backward()
        torch.testing.assert_close(w.grad, x.T @ expected + 0.2 * w.detach())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_shares_are_the_weights_whatever_the_scales_of_the_losses(scale):
    torch.manual_seed(0)
    balancer = Balancer({"a": 1.0, "b": 3.0}, decay=0.9)
    shares = []
    for step in range(60):
        output = torch.randn(4, 2, 10, requires_grad=True)
        losses = {"a": scale * output[:, 0].square().mean(), "b": (output[:, 1] - 2).square().mean()}
        g = gradient(balancer, losses, output) * 4
        if step >= 20:
            shares.append((clip_norm(g[:, 0]), clip_norm(g[:, 1])))
    a, b = torch.tensor(shares).mean(0).tolist()
    assert (a, b) == pytest.approx((0.25, 0.75), rel=0.05)


def test_a_loss_that_grows_for_one_step_counts_more_in_that_step():
    balancer, output = Balancer({"a": 1.0}, decay=0.999), torch.ones(2, 3, requires_grad=True)
    for _ in range(50):
        usual = gradient(balancer, {"a": output.mean()}, output)
    torch.testing.assert_close(gradient(balancer, {"a": 5 * output.mean()}, output) / usual, torch.full((2, 3), 4.63),
                               rtol=0.02, atol=0)  # fmt: skip


def test_neither_batch_nor_a_repeated_clip_changes_the_gradient_of_the_mean():
    torch.manual_seed(0)
    w, x = torch.randn(5, 6, requires_grad=True), torch.randn(2, 5)
    grads = []
    for batch in (x, x.repeat(4, 1)):
        output = batch @ w
        Balancer({"a": 1.0}).combine({"a": output.square().mean()}, output).backward()
        grads.append(w.grad)
        w.grad = None
    torch.testing.assert_close(grads[1], grads[0])
    balancer = Balancer({"a": 1.0})
    for B in (2, 8):  # the average made with one batch size serves another
        output = torch.ones(B, 4, requires_grad=True)
        torch.testing.assert_close(gradient(balancer, {"a": output.mean()}, output) * B, torch.full((B, 4), 0.5))


def test_a_loss_that_is_absent_constant_or_flat_leaves_its_share_and_its_average():
    weights = {"a": 1.0, "b": 3.0, "c": 2.0}
    balancer, output = Balancer(weights), torch.randn(2, 4, requires_grad=True)
    a = output[:, 0].mean()
    for losses in ({"a": a}, {"a": a, "b": torch.tensor(3.0)}, {"a": a, "b": 0 * output.sum(), "c": 0 * output.sum()},
                   {"a": a, "b": torch.ones((), requires_grad=True) * 2}):  # fmt: skip
        g = gradient(balancer, losses, output)
        assert clip_norm(g) * 2 == pytest.approx(1)
        assert (balancer.norm_b == 0).all() and (balancer.norm_c == 0).all()
    g = gradient(balancer, {"a": a, "b": 7 * output[:, 1].mean()}, output) * 2
    torch.testing.assert_close(g, torch.tensor([[0.25, 0.75, 0, 0]]).expand(2, 4))  # b starts as if it were the first
    for nothing in ({}, {"b": 0 * output.sum()}):
        assert gradient(balancer, nothing, output).abs().max() == 0


def test_state_survives_state_dict():
    torch.manual_seed(0)
    balancer, output = Balancer({"b": 1.0, "a": 3.0}), torch.randn(2, 4, requires_grad=True)
    for i in range(3):
        balancer.combine({"a": (i + 1) * output.square().mean(), "b": (output - i).abs().mean()}, output)
    other = Balancer({"a": 3.0, "b": 1.0})  # averages belong to names, not to places
    other.load_state_dict(balancer.state_dict())
    losses = {"a": output.square().mean(), "b": output.square().sum()}
    expected = gradient(balancer, losses, output)
    torch.testing.assert_close(gradient(other, losses, output), expected)
    fresh = gradient(Balancer({"a": 3.0, "b": 1.0}), losses, output)
    assert (fresh - expected).abs().max() > 0.01 and not list(balancer.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_reaches_the_gradient_and_not_the_averages(bad):
    balancer, output = Balancer({"a": 1.0, "b": 1.0}), torch.ones(2, 4, requires_grad=True)
    broken = {"a": output.mean(), "b": output.mean() * bad}
    for _ in range(2):  # before there is an average, and after
        assert not gradient(balancer, broken, output).isfinite().any()
        assert all(buffer.isfinite().all() for buffer in balancer.buffers())
        assert clip_norm(gradient(balancer, {"a": output.mean(), "b": output.mean()}, output)) * 2 == pytest.approx(1)


def test_processes_share_the_averages(monkeypatch):
    def all_reduce(norms: torch.Tensor) -> None:
        norms += torch.tensor([3.0, 1.0])  # of the other process

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    balancer, output = Balancer({"a": 1.0, "b": 1.0}), torch.ones(1, 4, requires_grad=True)
    g = gradient(balancer, {"a": output[:, 0].sum()}, output)  # b is there on the other one: its weight counts
    averages = [buffer[0] / buffer[1] for buffer in balancer.buffers()]
    torch.testing.assert_close(torch.stack(averages).float(), torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(g, torch.tensor([[0.25, 0, 0, 0]]))


def test_losses_may_share_a_graph_and_the_output_may_be_bfloat16():
    torch.manual_seed(0)
    w = torch.randn(6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.randn(3, 6) @ w
        shared = (output @ torch.randn(6, 4)).tanh()
        total = Balancer({"a": 1.0, "b": 1.0}).combine({"a": shared.mean(), "b": F.relu(shared).mean()}, output)
    assert output.dtype == torch.bfloat16 and total.dtype == torch.float32
    total.backward()
    assert w.grad.isfinite().all() and w.grad.abs().max() > 0


def test_what_the_balancer_refuses():
    with pytest.raises(ValueError, match="weights="):
        Balancer({})
    with pytest.raises(ValueError, match="weights="):
        Balancer({"a": 0.0})
    with pytest.raises(ValueError, match="decay=1"):
        Balancer({"a": 1.0}, decay=1)
    with pytest.raises(ValueError, match="total_norm=0"):
        Balancer({"a": 1.0}, total_norm=0)
    output = torch.zeros(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"\['mel'\] have no weight, expected some of \['a'\]"):
        Balancer({"a": 1.0}).combine({"mel": output.sum()}, output)
    with pytest.raises(ValueError, match="does not require grad"):
        Balancer({"a": 1.0}).combine({"a": output.sum()}, output.detach())
