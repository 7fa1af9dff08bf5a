"""The super-resolution head: streamed is whole, nothing later changes what is seen, a still clip stays still."""

from __future__ import annotations

import tempfile
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenizers_av.packed import Packed, PackedConv
from tokenizers_av.superres import (
    RATES,
    SCALES,
    STEPS,
    SUPERRES_PRESETS,
    SuperRes,
    SuperResConfig,
    downsample,
    in_between,
    steadied,
    superres_config,
    upsample,
    window_within,
)
from tokenizers_av.superres.windows import WINDOW, memory_of, shelf_bytes
from tokenizers_av.video import layers


def awake(**overrides) -> SuperRes:
    """A debug head none of whose weights are zero."""
    torch.manual_seed(0)
    head = SuperRes(superres_config("debug", **{"noise": 0.1, **overrides})).eval()
    for p in head.parameters():
        nn.init.normal_(p, std=0.1)
    return head


def clip(B: int = 1, T: int = 5, H: int = 12, W: int = 16) -> torch.Tensor:
    return torch.rand(B, 3, T, H, W, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("steps", "rate"), [*((steps, 1) for steps in STEPS), (2, 2), (1, 3)])
def test_in_any_chunks_it_is_the_whole(steps, rate):
    head, video = awake(), clip()
    whole = head.upscale(video, steps=steps, rate=rate)
    for cuts in ([1] * 5, [2, 3], [4, 1]):
        parts = list(head.upscale_stream(video.split(cuts, dim=2), steps=steps, rate=rate))
        assert len(parts) == 5 * rate and torch.equal(torch.cat(parts, dim=2), whole)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
@pytest.mark.parametrize(("window", "scale"), [(16, 4), (40, 4), (1, 2)])
def test_windows_are_the_whole_from_frame_to_frame(window, scale, dtype, near, monkeypatch):
    head, video = awake().to(dtype), clip(T=3, H=22, W=19)
    whole = head.upscale(video, scale, steps=2, steady=False)
    seen, draw = [], head.net.forward
    monkeypatch.setattr(head.net, "forward", lambda gone, *rest: seen.append(gone.shape[2:4]) or draw(gone, *rest))
    drawn = head.upscale(video, scale, steps=2, window=window, steady=False)
    assert (drawn - whole).abs().max() < near < 0.02 * (whole - upsample(video, scale)).abs().mean()
    widest = max(8, window // 8 * 8) + 2 * head.config.reach
    assert len(seen) > 6 and max(max(size) for size in seen) <= widest
    parts = head.upscale_stream(video.split([1, 2], dim=2), scale, steps=2, window=window, steady=False)
    assert torch.equal(torch.cat(list(parts), dim=2), drawn)


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_what_is_out_of_reach_does_not_count(n_blocks):
    head, base = awake(n_blocks=n_blocks), torch.rand(1, 1, 16, 128, 3)
    first = head.config.reach + head.config.stride  # of the pixels that those of the first stride do not reach
    far, near = base.clone(), base.clone()
    far[:, :, :, first:], near[:, :, :, first - 2 * head.config.stride :] = 0, 0
    made, same, other = (head(x, 0 * x, *torch.zeros(2, 1), 4, torch.zeros(1))[:, :, :, :8] for x in (base, far, near))
    assert torch.equal(made, same) and not torch.equal(made, other)


def test_each_kernel_is_laid_out_once_for_all_steps_and_windows(monkeypatch):
    head, made = awake(), []
    convs = [m for m in head.modules() if isinstance(m, layers.Conv)]
    if not Packed.can(convs[0].weight):
        pytest.skip("this CPU has no such layout")
    monkeypatch.setattr(layers, "PackedConv", lambda *how: made.append(how) or PackedConv(*how))
    head.upscale(clip(T=3), 4, steps=4, window=16)
    assert len(made) == len(convs)
    made.clear()
    head.upscale(clip(T=1), 4, steps=4, window=16)
    assert not made  # an image has no use for it


def test_what_a_window_remembers_waits_in_a_file_without_a_name(tmp_path, monkeypatch):
    files, opened = [], tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **how: files.append(opened(**how)) or files[-1])
    head, video = awake(), clip(H=13)
    next(head.upscale_stream([video], steps=2))
    assert not files
    whole = head.upscale(video, steps=2, steady=False)
    for window in (16, 1024):
        frames = head.upscale_stream([video], steps=2, window=window, steady=False)
        assert (next(frames) - whole[:, :, :1]).abs().max() < 1e-6
        assert files[-1].seek(0, 2) == shelf_bytes(head.config, (52, 64), 2, 4, window) > 0
        assert not list(tmp_path.iterdir())  # so a kill leaves nothing either
        files[-1].write(b"...")
        frames.close()
        assert files[-1].closed
    assert len(files) == 2


def test_no_room_for_what_waits_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **how: open("/dev/full", "w+b"))  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device, set TMPDIR to another folder: '{tmp_path}'"):
        awake().upscale(clip(), window=16)
    config, size = superres_config("tiny"), (2160, 3840)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=7e9))
    assert window_within(config, size, 1, 4, 4e9, 0) == WINDOW
    with pytest.raises(ValueError, match=rf"7.2 GB must wait in the temporary folder, {tmp_path} has 7.0 GB free"):
        window_within(config, size, 2, 4, 4e9, 0)


def test_windows_are_taken_where_the_whole_does_not_fit():
    config, size = superres_config("tiny"), (2160, 3840)
    whole, parts = (memory_of(config, size, 4, 4, window) + 1e8 for window in (None, WINDOW))
    assert whole > 2 * parts
    assert window_within(config, size, 4, 4, whole, 1e8) is None
    assert window_within(config, size, 4, 4, whole - 1, 1e8) == WINDOW
    with pytest.raises(ValueError, match=r"frames of 3,840x2,160 need [0-9.]+ GB") as told:
        window_within(config, size, 4, 4, parts - 1, 1e8)
    enough = float(str(told.value).split()[-2]) * 1e9
    assert enough < parts + 1e8 and window_within(config, size, 4, 4, enough, 1e8) == WINDOW
    assert window_within(config, size, 1, 2, whole / 2, 1e8) is None  # fewer steps and bits


def test_carried_state_is_what_whole_clips_see():
    """The law of the layers: frame by frame with tails equals the network over the whole clip, at every step."""
    head, video = awake(steps=2, noise=0.1), clip()
    base = upsample(video, 4).permute(0, 2, 3, 4, 1)
    generator = torch.Generator().manual_seed(7)
    x = base + 0.1 * torch.randn(1, 1, *base.shape[2:], generator=generator)
    for i in range(2):
        detail = head(x, base, torch.tensor([i / 2]), torch.tensor([0.1]), 4, torch.ones(1))
        velocity = (base + detail - x) / (1 - i / 2)
        x = x + velocity / 2
    detail = x - base
    x = base + detail.sign() * (detail.abs() - 0.5 * 2 / 255).clamp(min=0)  # half a grey level is none
    assert (head.upscale(video, seed=7, steady=False) - x.clamp(-1, 1).permute(0, 4, 1, 2, 3)).abs().max() < 1e-5


def test_what_comes_later_changes_nothing_and_what_came_before_does():
    head, video = awake(), clip()
    later, earlier = video.clone(), video.clone()
    later[:, :, 3:], earlier[:, :, 0] = 0, 0
    made, same, other = (head.upscale(v) for v in (video, later, earlier))
    assert torch.equal(made[:, :, :3], same[:, :, :3])
    assert not torch.equal(made[:, :, 1], other[:, :, 1])
    faster, same = (head.upscale(v, rate=2) for v in (video, later))
    assert torch.equal(faster[:, :, :5], same[:, :, :5]) and not torch.equal(faster[:, :, 5], same[:, :, 5])
    assert torch.equal(faster[:, :, ::2], made)


def test_each_clip_of_a_batch_is_as_alone():
    head, video = awake(), clip(B=3)
    for steady, near in ((False, 1e-5), (True, 5e-3)):  # flow is read off 8 bits, where rounding may fall either way
        apart = head.upscale(video, steady=steady)[1:2] - head.upscale(video[1:2], steady=steady)
        assert apart.abs().max() < near


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 24)])
def test_any_size_and_length(scale, size):
    for T in (1, 2):
        made = awake().upscale(clip(1, T, *size), scale)
        assert made.shape == (1, 3, T, scale * size[0], scale * size[1])
        assert made.abs().max() <= 1 and made.isfinite().all()


def test_a_new_head_only_upsamples():
    head, video = SuperRes(superres_config("debug")).eval(), clip()
    assert (head.upscale(video, steady=False) - upsample(video, 4)).abs().max() < 1e-6


@pytest.mark.parametrize("rate", RATES)
def test_frames_lie_between_the_large_ones_and_the_last_is_held(rate):
    head, video = awake(), clip(H=16)
    made, given = head.upscale(video, rate=rate), head.upscale(video)
    assert made.shape[2] == 5 * rate
    assert torch.equal(made[:, :, : 1 + 4 * rate], in_between(given, rate))
    assert (made[:, :, 4 * rate :] == given[:, :, 4:]).all()


@pytest.mark.parametrize("scale", SCALES)
def test_a_clip_that_shall_be_kept_is_what_it_was_when_made_small_again(scale):
    head, video = awake(), F.interpolate(clip(H=6, W=6)[0], scale_factor=4, mode="bicubic").clamp(-0.9, 0.9)[None]
    made = (head.upscale(video, scale, keep=keep) for keep in (False, True))
    away, kept = (255 / 2 * (downsample(x, scale) - video).abs().mean() for x in made)
    assert away > 1.9 and kept < away / 1.7, (away, kept)
    steady = SuperRes(superres_config("debug")).eval()
    flat = torch.full((1, 3, 2, 8, 8), 0.3)
    assert torch.equal(steady.upscale(flat, scale, keep=True), steady.upscale(flat, scale))  # nothing to undo
    assert torch.equal(head.upscale(video, scale, keep=True), head.upscale(video, scale, keep=True, noise=0.0))
    assert not torch.equal(head.upscale(video, scale), head.upscale(video, scale, noise=0.0))
    parts = list(head.upscale_stream(video.split(2, dim=2), scale, keep=True))
    assert torch.equal(torch.cat(parts, dim=2), head.upscale(video, scale, keep=True))


@pytest.mark.parametrize("window", [None, 16])
def test_of_a_frame_alone_nothing_is_remembered(window, monkeypatch):
    head, video = awake(), clip(T=2)
    (first, _) = head.upscale_stream([video], steps=2, window=window)
    kept, draw = [], head.net.forward
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    monkeypatch.setattr(head.net, "forward", lambda *given: kept.append(given[-1].tails) or draw(*given))
    assert torch.equal(head.upscale(video[:, :, :1], steps=2, window=window), first)
    assert kept and not any(tails is not None for tails in kept)
    with pytest.raises(ValueError, match="said to be alone"):
        list(head.upscale_stream([video], window=window, alone=True))


@pytest.mark.parametrize(("keep", "same"), [(True, 48 / 255), (False, 24 / 255)])
def test_frames_are_steadied_from_one_to_the_next(monkeypatch, keep, same):
    monkeypatch.setattr("tokenizers_av.superres.head.SLACK", 2.0)  # nothing is undone
    head, video = awake(), clip(T=1, H=6, W=6).expand(-1, -1, 3, -1, -1) * 0.9 + clip(T=3, H=6, W=6) * 0.05
    drawn, made = (head.upscale(video, keep=keep, steady=steady).unbind(2) for steady in (False, True))
    assert torch.equal(made[0], drawn[0])
    for t in (1, 2):
        assert torch.equal(made[t], steadied(drawn[t], drawn[t - 1], made[t - 1], same))
    assert not torch.equal(made[2], steadied(drawn[2], drawn[1], drawn[1], same))


def test_steady_frames_are_kept():
    head, video = awake(), clip(T=1, H=6, W=6).expand(-1, -1, 3, -1, -1) * 0.9 + clip(T=3, H=6, W=6) * 0.05
    made = head.upscale(video)
    kept = head.upscale(video, keep=True)
    again = (downsample(kept, 4) - video).abs().mean()
    assert again < 0.8 * (downsample(made, 4) - video).abs().mean()


def test_text_counts_in_any_order_and_none_is_none():
    head, video = awake(text_size=9), clip(T=2)
    plain = head.upscale(video)
    one, same, other, none = (
        head.upscale(video, text=torch.tensor([ids])) for ids in ([3, 5, -1], [5, 3], [3, 6], [-1, -1])
    )
    assert torch.equal(none, plain) and (one - same).abs().max() < 1e-5
    for different in (plain, other):
        assert (one - different).abs().max() > 1e-4


def test_seed_and_noise_count():
    head, video = awake(), clip()
    made = head.upscale(video, seed=1)
    assert torch.equal(made, head.upscale(video, seed=1))
    for other in (head.upscale(video, seed=2), head.upscale(video, seed=1, noise=0.15)):
        assert not torch.equal(made, other)


def test_time_noise_level_scale_and_decoding_reach_the_network():
    x = clip(T=2, H=8, W=8).permute(0, 2, 3, 4, 1)

    def made(time=0.0, noise=0.0, scale=2, decoded=0.0, max_noise=0.25) -> torch.Tensor:
        head = awake(noise=0.0, max_noise=max_noise)
        return head(x, 0 * x, torch.tensor([time]), torch.tensor([noise]), scale, torch.tensor([decoded]))

    for other in (made(time=0.5), made(noise=0.1), made(scale=4), made(decoded=1.0)):
        assert (made() - other).abs().max() > 1e-5
    assert torch.equal(made(noise=0.125), made(noise=0.5, max_noise=1.0))  # levels are shares of the highest
    assert made(max_noise=0.0).isfinite().all()


def test_clips_that_may_be_mended_are_told_as_decoded(monkeypatch):
    head, told = awake(steps=2), []
    draw = head.net.forward
    monkeypatch.setattr(head.net, "forward", lambda *given: told.append(given[5].tolist()) or draw(*given))
    for keep in (False, True):
        head.upscale(clip(B=2), keep=keep)
    n = len(told) // 2
    assert told == [[1.0, 1.0]] * n + [[0.0, 0.0]] * n and n > 1


def test_a_still_clip_stays_still():
    head, still = awake(), clip(T=1, H=7, W=6).expand(-1, -1, 5, -1, -1)
    x = upsample(still, 4)[..., :24, :24].permute(0, 2, 3, 4, 1)
    whole = head(x, 0 * x, torch.zeros(1), torch.zeros(1), 4, torch.ones(1)).permute(0, 4, 1, 2, 3)
    for made in (whole, head.upscale(still)):
        assert made.std() > 0.1 and made.diff(dim=2).abs().max() < 1e-5


def test_low_precision_stays_near():
    head, video = awake(), clip()
    made, low = head.upscale(video), awake().bfloat16().upscale(video)
    detail = (made - upsample(video, 4)).abs().mean()
    assert low.dtype == torch.float32 and (low - made).abs().mean() < 0.03 * detail
    assert torch.equal(head.upscale(video.half()), head.upscale(video.half().float()))


def spied(detail: float = 0.0) -> tuple[SuperRes, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A head that makes the same detail everywhere, and (gone, base) that its network is given at each step."""
    head, seen = SuperRes(superres_config("debug")).eval(), []
    head.net.forward = lambda gone, base, *rest: seen.append((gone, base)) or torch.full_like(gone, detail)
    return head, seen


def test_low_precision_keeps_little_detail_of_a_bright_clip():
    head, seen = spied(detail=0.001)
    head.bfloat16().upscale(torch.full((1, 3, 1, 2, 2), 0.7), steps=4)
    assert [float(gone.float().mean()) for gone, _ in seen] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4], rel=0.01)


def test_frames_are_filled_up_by_their_right_and_bottom_edges():
    (head, seen), video = spied(), clip(T=1, H=7, W=5)
    bicubic = upsample(video, 2)
    assert torch.equal(head.upscale(video, 2), bicubic)
    filled = F.pad(bicubic, (0, 6, 0, 2, 0, 0), mode="replicate")
    assert torch.equal(seen[0][1].permute(0, 4, 1, 2, 3), filled)


def test_noise_is_the_same_in_every_frame():
    head, seen = spied()
    head.upscale(torch.zeros(1, 3, 3, 8, 8), noise=0.1, steps=1)
    first, *rest = (gone for gone, _ in seen)
    assert first.std() == pytest.approx(0.1, rel=0.1) and all(torch.equal(gone, first) for gone in rest)


def test_down_and_up_keep_a_smooth_clip():
    ramp = torch.linspace(-0.9, 0.9, 32).expand(1, 3, 2, 32, 32)
    for scale in SCALES:
        assert downsample(ramp, scale).shape[-2:] == (32 // scale, 32 // scale)
        assert (upsample(downsample(ramp, scale), scale) - ramp)[..., 8:-8].abs().max() < 0.02


def test_saves_loads_and_refuses_what_does_not_fit(tmp_path):
    head = awake()
    head.save_pretrained(tmp_path)
    again = SuperRes.from_pretrained(tmp_path).eval()
    assert again.config == head.config and torch.equal(again.upscale(clip()), head.upscale(clip()))
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"n_blocks": 1', '"n_blocks": 2')
    )
    with pytest.raises(ValueError, match="the weights do not fit"):
        SuperRes.from_pretrained(tmp_path)


@pytest.mark.parametrize("preset", SUPERRES_PRESETS)
def test_presets_build(preset):
    with torch.device("meta"):
        head = SuperRes(superres_config(preset))
    assert head.config.stride == 2 * head.config.patch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.upscale(clip(), 3), "scale=3: expected 2 or 4"),
        (lambda h: h.upscale(clip(), rate=4), "rate=4: expected 1, 2 or 3"),
        (lambda h: h.upscale(clip(), rate=2.0), "rate=2.0: expected 1, 2 or 3"),
        (lambda h: awake(text_size=9).upscale(clip(B=2), text=torch.zeros(3, 4).long()), "expected ids \\(B, L\\)"),
        (lambda h: h.upscale(clip(), text=torch.tensor([[1]])), "trained without text"),
        (lambda h: awake(text_size=9).upscale(clip(), text=torch.tensor([[9]])), "expected ids .* in \\[0, 9\\)"),
        (lambda h: awake(text_size=9).upscale(clip(), text=torch.tensor([1])), "expected ids \\(B, L\\)"),
        (lambda h: SuperResConfig(text_size=-1), "text_size=-1"),
        (lambda h: h.upscale(clip(), steps=5), "steps=5: expected one of 1, 2, 4, 8"),
        (lambda h: h.upscale(clip(), noise=0.4), "noise=0.4: this head has learned levels of 0 to 0.15"),
        (lambda h: h.upscale(clip(), noise=float("nan")), "noise=nan"),
        (lambda h: h.upscale(clip(), window=0), "window=0: need a whole number of pixels"),
        (lambda h: h.upscale(clip(), window=2.5), "window=2.5: need a whole number"),
        (lambda h: h.upscale(clip() * 2), "expected \\[-1, 1\\]"),
        (lambda h: h.upscale(clip()[0]), "expected \\(B, 3, T, H, W\\)"),
        (lambda h: list(h.upscale_stream([])), "no frames"),
        (lambda h: list(h.upscale_stream([clip(), clip(H=8)])), "only the number of frames may change"),
        (lambda h: SuperResConfig(dims=(16, 48)), "dims="),
        (lambda h: SuperResConfig(patch=0), "patch=0"),
        (lambda h: SuperResConfig(noise=0.5), "noise=0.5"),
        (lambda h: SuperResConfig(max_noise=-1.0), "max_noise"),
        (lambda h: superres_config("huge"), "unknown super-resolution preset"),
    ],
)
def test_bad_values_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(awake())
