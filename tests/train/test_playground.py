"""The playground: the same index always gives the same clip, and the clip shows and sounds what its truth says."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from train.data import MediaSpec, Source, open_source
from train.data.playground import Playground, Scene, Thing, all_captions, depth, flow, flow_since, masks, physics
from train.data.playground import captions as words
from train.data.playground import scene as world
from train.data.playground.physics import FLOOR, Body, Path
from train.data.playground.render import GROUNDS, PAPER
from train.data.playground.shapes import SHAPES, reach, widest
from train.data.playground.sound import PITCH

SPEC = MediaSpec()
SMALL = MediaSpec(n_frames=5, size=32, fps=4.0, sample_rate=8000)
N = 400


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    playground = Playground()
    return [playground.scene(index) for index in range(N)]


def made(motion: str, direction: str | None = None, shape: str = "ball", size: str = "medium", **look: str) -> Scene:
    """A plain scene of one red object, made to order."""
    material = look.pop("material", "wood")
    path = world.sample_path(
        world.Dice(motion, direction, shape), motion, direction, shape, world.SIZES[size], material
    )
    thing = Thing(shape, look.pop("colour", "red"), size, material, motion, direction, path)
    return replace(Scene((thing,), "plain", 0, "still", "plain"), **look)


def test_a_clip_does_not_depend_on_its_batch():
    indices = [0, 5, 2, 9, 7, 11, 4, 30, 31, 32, 33, 34]
    neon = [i for i in range(N) if Playground().scene(i).style == "neon"][:12]
    indices += [i for i in neon if i not in indices]
    together = Playground().batch(indices, SPEC)
    assert together.video is not None and together.audio is not None
    backwards = Playground().batch(indices[::-1], SPEC)
    assert torch.equal(together.video, backwards.video.flip(0)) and torch.equal(together.audio, backwards.audio.flip(0))
    for place, index in enumerate(indices):
        alone = Playground().batch([index], SPEC)
        assert torch.equal(alone.video[0], together.video[place]), f"index {index}"
        assert torch.equal(alone.audio[0], together.audio[place]), f"index {index}"
        assert alone.captions[0] == together.captions[place]


def test_split_and_seed_change_the_scenes(scenes):
    others = [Playground("test"), Playground(seed=1), Playground("test", seed=1)]
    seen = {scene.objects for scene in scenes}
    for other in others:
        drawn = {other.scene(index).objects for index in range(N)}
        assert not drawn & seen
        seen |= drawn


def test_shapes_ranges_and_parts():
    batch = Playground().batch(range(40), SMALL)
    assert batch.video.shape == (40, 3, 5, 32, 32) and batch.audio.shape == (40, 10000)
    assert batch.video.dtype == batch.audio.dtype == torch.float32
    for name, values, peak in (("video", batch.video, 1.0), ("audio", batch.audio, 0.9)):
        assert torch.isfinite(values).all(), name
        assert values.abs().max() <= peak + 1e-4, name
    assert batch.video.flatten(1).std(1).min() > 0.01
    part = Playground().batch([3], SMALL, video=False)
    assert part.video is None and part.audio is not None
    part = Playground().batch([3], SMALL, audio=False)
    assert part.audio is None and part.video is not None


def test_longer_clips_begin_like_short_ones():
    short, long = (Playground().batch(range(12), MediaSpec(n_frames=n, size=32)) for n in (9, 33))
    assert torch.equal(short.video, long.video[:, :, :9])
    n = short.audio.shape[1]
    assert torch.equal(short.audio, long.audio[:, :n])


@pytest.mark.parametrize("size", [20, 33, 96])
def test_any_size(size):
    video = Playground().batch(range(16), MediaSpec(n_frames=2, size=size), audio=False).video
    assert video.shape == (16, 3, 2, size, size) and torch.isfinite(video).all()


def test_open_source():
    source = open_source("playground", split="test", seed=3)
    assert isinstance(source, Source)
    assert source.batch([1], SMALL).captions == [Playground("test", 3).scene(1).caption]
    with pytest.raises(ValueError, match="split='dev'"):
        open_source("playground", split="dev")
    with pytest.raises(ValueError, match="no such folder"):
        open_source("no/such/place")


# --- what is drawn from the dice -----------------------------------------------------------------------------------


def test_shares_of_scenes(scenes):
    counts = [sum(len(s.objects) == n for s in scenes) / N for n in (1, 2, 3)]
    assert np.allclose(counts, (0.7, 0.2, 0.1), atol=0.08)
    assert abs(sum(s.style == "plain" for s in scenes) / N - 0.7) < 0.08
    assert abs(sum(s.camera == "still" for s in scenes) / N - 0.7) < 0.08
    assert {s.style for s in scenes} == set(world.STYLES) and {s.camera for s in scenes} == set(world.CAMERAS)
    assert {s.background for s in scenes} == set(world.BACKGROUNDS)
    things = [t for s in scenes for t in s.objects]
    for field, values in (("shape", SHAPES), ("colour", world.COLOURS), ("size", world.SIZES)):
        assert {getattr(t, field) for t in things} == set(values)
    assert {t.motion for t in things} == {*world.MOTIONS, "collide"}
    assert sum(bool(s.impacts(SPEC.seconds)) for s in scenes) / N > 0.5


def test_motion_is_large_in_the_default_clip(scenes):
    times = np.linspace(0, 1.45, 60)
    for scene in scenes:
        track = physics.track(scene.bodies, times)
        for i, thing in enumerate(scene.objects):
            path = track.position[:, i]
            if thing.motion in ("slide", "roll", "float"):
                moved = path[-1] - path[0]
                along = moved[1 if thing.motion == "float" else 0]
                assert np.sign(along) == (1 if thing.direction in ("right", "down") else -1)
                whole = physics.track(scene.bodies, np.linspace(0, SPEC.seconds, 60)).position[:, i]
                least = 0.33 if thing.motion == "roll" and thing.size == "large" else 0.4  # they need much room
                assert np.ptp(whole, axis=0).max() > least
            elif thing.motion == "orbit":
                assert abs(thing.path.rate) * SPEC.seconds > 0.75 * 2 * math.pi
            elif thing.motion in ("bounce", "swing"):
                assert np.ptp(path, axis=0).max() > 0.35


def test_everything_stays_in_the_room(scenes):
    times = np.linspace(0, 6, 100)
    for scene in scenes:
        track = physics.track(scene.bodies, times)
        for i, thing in enumerate(scene.objects):
            for direction in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                edge = track.position[:, i] @ direction + thing.radius * reach(
                    thing.shape, direction, track.angle[:, i]
                )
                limit = 1.0 if sum(direction) > 0 else 0.0
                slack = 0.06 + thing.radius * (widest(thing.shape) - 1) if thing.motion == "swing" else 0.0
                assert edge.max() <= limit + slack + 1e-6, (thing, direction)


def told(caption: str, table: dict) -> list:
    """Keys of the table one of whose words stands in the caption."""
    text = f" {caption} ".replace(",", " ").replace(":", " ")
    return [key for key, synonyms in table.items() if any(f" {word} " in text for word in synonyms)]


def test_captions_tell_the_truth(scenes):
    for scene in scenes:
        caption = scene.caption
        assert caption == caption.lower() and not caption.endswith(".")
        assert set(told(caption, {c: (c,) for c in world.COLOURS})) == {t.colour for t in scene.objects}
        assert set(told(caption, words.SHAPE_WORDS)) == {t.shape for t in scene.objects}
        assert set(told(caption, words.SIZE_WORDS)) <= {t.size for t in scene.objects}
        metal = [m for m in told(caption, words.MATERIAL_WORDS) if m != "wood"]  # "wooden" may be the floor
        assert set(metal) <= {t.material for t in scene.objects}
        if scene.objects[0].motion == "collide":
            assert any(verb in caption for verb in ("collide", "bump", "crash"))
        else:
            assert {(t.motion, t.direction) for t in scene.objects} <= set(told(caption, words.MOTION_WORDS))
        assert told(caption, words.STYLE_WORDS) == [scene.style] * (scene.style != "plain")
        assert told(caption, words.CAMERA_WORDS) in ([], [scene.camera])
        assert set(told(caption, words.BACKGROUND_WORDS)) <= {scene.background}


def test_captions_for_the_text_tokenizer(scenes):
    drawn = list(all_captions(30, seed=0))
    assert drawn == [scene.caption for scene in scenes[:30]]
    assert list(all_captions(30, seed=1)) != drawn


def test_evaluation_scenes():
    asked = Playground("test").evaluation_scenes(200)
    assert all(len(s.objects) == 1 and s.style == "plain" and s.camera == "still" and s.caption for s in asked)
    assert {s.objects[0].motion for s in asked} == set(world.MOTIONS)
    assert {s.objects[0].shape for s in asked} == set(SHAPES)
    assert {s.background for s in asked} == set(world.BACKGROUNDS)
    assert asked[:50] == Playground().evaluation_scenes(50)


# --- the picture ---------------------------------------------------------------------------------------------------


def frames(scene: Scene, spec: MediaSpec = SPEC) -> np.ndarray:
    """(T, H, W, 3) in [0, 1]."""
    return ((Playground().render([scene], spec)[0] + 1) / 2).permute(1, 2, 3, 0).numpy()


def nearest_colour(rgb: np.ndarray) -> str:
    """The named colour of the same hue, whatever the brightness and the share of white."""

    def hue(c: np.ndarray) -> np.ndarray:
        return (c - c.min()) / np.linalg.norm(c - c.min())

    return max(world.COLOURS, key=lambda name: float(hue(np.array(world.COLOURS[name])) @ hue(rgb)))


def test_colours_are_far_from_one_another_and_from_every_ground():
    objects = [np.array(c) for c in world.COLOURS.values()]
    grounds = [np.array(c) for tints in GROUNDS.values() for pair in tints for c in pair] + [np.array(PAPER)]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(objects) for b in objects[:i]) > 0.42
    assert min(np.linalg.norm(a - b) for a in objects for b in grounds) > 0.38
    assert all(np.ptp(c) < 0.20 for c in grounds), "grounds are muted"


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_of_an_object_have_its_colour(shape):
    for colour in world.COLOURS:
        for material in world.MATERIALS:
            scene = made("slide", "left", shape, "large", colour=colour, material=material)
            picture, mask = frames(scene), masks(scene, SPEC)[0].numpy()
            for t in (0, 8, 16):
                assert nearest_colour(picture[t][mask[t]].mean(0)) == colour, (colour, material, t)


def test_masks_lie_at_the_positions_and_have_the_size(scenes):
    for scene in scenes[:40]:
        truth, found = scene.truth(SPEC), masks(scene, SPEC, visible=False).numpy()
        assert found.shape == (len(scene.objects), 17, 64, 64)
        for i, thing in enumerate(scene.objects):
            for t in (0, 9, 16):
                radius = truth.radii[t, i]
                if np.abs(truth.positions[t, i] - 32).max() + 1.4 * radius > 32:
                    continue  # cut by the edge of the picture
                y, x = np.nonzero(found[i, t])
                middle = np.array([x.mean(), y.mean()]) + 0.5
                heavy = 0.2 if thing.shape == "triangle" else 0.08  # its centre lies above its centre of mass
                assert np.abs(middle - truth.positions[t, i]).max() < heavy * radius + 0.5, (thing.shape, t)
                width = max(np.ptp(x), np.ptp(y)) + 1
                assert 1.6 * radius - 1 < width < 2.4 * radius + 1, (thing.shape, t)


def test_picture_changes_only_where_the_masks_say():
    scene = made("bounce", shape="star")
    picture, mask = frames(scene), masks(scene, SPEC)[0].numpy()
    ground = np.array(GROUNDS["plain"][0][0])
    differs = np.abs(picture - ground).max(-1) > 0.25
    assert (differs ^ mask).mean() < 0.01 and (differs & mask).sum() > 0.9 * mask.sum()


@pytest.mark.parametrize("style", world.STYLES)
def test_styles_change_the_picture_and_keep_the_place(style):
    scene = made("bounce", shape="cube", size="large", style=style, colour="green")
    picture, mask = frames(scene), masks(scene, SPEC)[0].numpy()
    assert nearest_colour(picture[3][mask[3]].mean(0)) == "green"
    ground = picture[3][~mask[3]].mean()
    assert (ground < 0.2) == (style == "neon") and (ground > 0.88) == (style == "sketch")
    blocks = picture[:, 0::2, 0::2]
    assert np.array_equal(blocks, picture[:, 1::2, 1::2]) == (style == "pixel")


@pytest.mark.parametrize("camera, sign", [("pan left", 1), ("pan right", -1), ("zoom in", 0), ("zoom out", 0)])
def test_camera_moves_the_ground(camera, sign):
    scene = made("slide", "right", camera=camera)
    moved = flow(scene, SPEC)[0]
    if sign:
        assert (moved[0, :, 0] * sign > 0.5).all() and moved[0, :, 1].abs().max() == 0
    else:
        outwards = moved[0, 0].sign()
        assert (outwards == (-1 if camera == "zoom in" else 1)).all()


def test_flow_carries_masks_from_frame_to_frame():
    scene = made("roll", "right", "cross", "large", camera="pan left")
    spec = MediaSpec(fps=24.0, n_frames=9)
    mask, moved = masks(scene, spec)[0], flow(scene, spec)
    for t in range(8):
        y, x = torch.nonzero(mask[t], as_tuple=True)
        there = torch.stack([x, y], 1) + 0.5 + moved[t, y, x]
        there = there.floor().long()
        inside = ((there >= 0) & (there < 64)).all(1)
        hit = mask[t + 1][there[inside, 1], there[inside, 0]].float().mean()
        assert hit > 0.93, f"frame {t}: {hit}"


@pytest.mark.parametrize("camera", ["pan left", "zoom in"])
def test_flow_since_the_frame_before_leads_back_to_it(camera):
    scene = made("roll", "right", "cross", "large", camera=camera)
    spec = MediaSpec(fps=24.0, n_frames=9)
    mask, came = masks(scene, spec)[0], flow_since(scene, spec)
    assert came.shape == (9, 64, 64, 2) and not came[0].any()
    for t in range(1, 9):
        for wanted in (mask, ~mask):  # the object, and the ground that the camera moves
            y, x = torch.nonzero(wanted[t], as_tuple=True)
            before = (torch.stack([x, y], 1) + 0.5 - came[t, y, x]).floor().long()
            inside = ((before >= 0) & (before < 64)).all(1)
            assert wanted[t - 1][before[inside, 1], before[inside, 0]].float().mean() > 0.93


def test_depth_and_hiding(scenes):
    scene = next(s for s in scenes if len(s.objects) == 3)
    shown, far = masks(scene, SPEC), depth(scene, SPEC)
    assert (shown.sum(0) <= 1).all()
    assert (far[~shown.any(0)] == 1).all() and (far > 0).all()
    assert len(far.unique()) == 4


# --- physics and sound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bounce_obeys_gravity_and_loses_speed(shape):
    scene = made("bounce", None, shape, material="rubber")
    body, hits = scene.bodies[0], scene.impacts(6.0)
    assert len(hits) > 3 and all(h.other == "floor" for h in hits)
    ratio = [b.speed / a.speed for a, b in pairwise(hits)]
    assert np.allclose(ratio, physics.RESTITUTION["rubber"])
    assert np.allclose([b.time - a.time for a, b in pairwise(hits)],
                       [2 * b.speed / physics.GRAVITY for b in hits[1:]])  # fmt: skip
    at = physics.track([body], np.array([h.time for h in hits])).position[:, 0, 1]
    assert np.allclose(at + body.radius * reach(shape, (0, 1)), FLOOR, atol=1e-9)
    early = np.linspace(0, hits[0].time, 50)
    y = physics.track([body], early).position[:, 0, 1]
    assert np.allclose(y, y[0] + physics.GRAVITY / 2 * early**2)


def test_velocity_is_the_slope_of_the_position(scenes):
    for scene in scenes[:120]:
        hits = [hit.time for hit in scene.impacts(3.0)]
        times = np.array([t for t in np.arange(0.03, 2.1, 0.13) if all(abs(t - h) > 1e-3 for h in hits)])
        step = 1e-5
        behind, here, ahead = (physics.track(scene.bodies, times + s * step) for s in (-1, 0, 1))
        slope = (ahead.position - behind.position) / (2 * step)
        # A rolling corner that meets the floor turns the height's slope at once: those few times are let pass.
        wrong = np.abs(slope - here.velocity).max(-1) > 1e-3
        assert wrong.sum() <= 1, scene.objects


def test_impacts_happen_where_things_touch(scenes):
    normal = {"floor": (0, 1), "ceiling": (0, -1), "left wall": (-1, 0), "right wall": (1, 0)}
    kinds = set()
    for scene in scenes:
        for hit in scene.impacts(SPEC.seconds):
            kinds.add(hit.other)
            thing = scene.objects[hit.object]
            track = physics.track(scene.bodies, np.array([hit.time]))
            place, angle = track.position[0], track.angle[0]
            if hit.other == "object":
                others = [i for i, o in enumerate(scene.objects) if i != hit.object and o.motion == "collide"]
                gaps = []
                for i in others:
                    side = 1 if place[i, 0] > place[hit.object, 0] else -1
                    reaches = thing.radius * reach(thing.shape, (side, 0))
                    reaches += scene.objects[i].radius * reach(scene.objects[i].shape, (-side, 0))
                    gaps.append(abs(place[i, 0] - place[hit.object, 0]) - reaches)
                assert min(np.abs(gaps)) < 1e-9
            else:
                direction = normal[hit.other]
                edge = place[hit.object] @ direction + thing.radius * reach(thing.shape, direction, angle[hit.object])
                wall = {"floor": FLOOR, "ceiling": 0.0, "left wall": 0.0, "right wall": 1.0}[hit.other]
                assert abs(edge - wall) < 1e-9, (thing, hit)
            assert hit.speed > 0
    assert kinds == {"object", *normal}


def test_collisions_keep_momentum_and_energy():
    row = (("ball", 0.1, 0.1, 0.5), ("cube", 0.17, 0.4, 0.0), ("star", 0.12, 0.8, -0.3))
    bodies = [Body(shape, radius, "wood", Path("collide", x=x, vx=v)) for shape, radius, x, v in row]
    mass = np.array([b.radius**2 for b in bodies])
    first = next(h for h in physics.impacts(bodies, 5.0) if h.other == "object")
    before, after = physics.track(bodies, np.array([first.time - 1e-6, first.time + 1e-6])).velocity[..., 0]
    assert not np.allclose(before, after)
    assert np.isclose(mass @ before, mass @ after) and np.isclose(mass @ before**2, mass @ after**2)


def test_onsets_fall_on_impacts_to_the_sample(scenes):
    playground, checked = Playground(), 0
    for scene in scenes[:150]:
        hits = scene.impacts(SPEC.seconds)
        audio = playground.sound([scene], SPEC)[0]
        assert audio.abs().max() <= 0.9
        if not hits:
            assert audio.abs().max() == 0
            continue
        first = math.ceil(hits[0].time * SPEC.sample_rate)
        assert audio[:first].abs().max() == 0 if first else True
        if first + 40 < len(audio):
            assert audio[first : first + 40].abs().max() > 0.01
            assert audio[first : first + 3].abs().max() > 1e-4, "the onset is sharp"
            checked += 1
    assert checked > 50


def test_pitch_loudness_and_decay_tell_size_speed_and_material():
    playground = Playground()

    def strike(size: str, material: str) -> torch.Tensor:
        scene = made("bounce", None, "ball", size, material=material)
        first = math.ceil(scene.impacts(9.0)[0].time * 16000)
        return playground.sound([scene], SPEC)[0, first : first + 6000].double()

    for size, pitch in PITCH.items():
        spectrum = torch.fft.rfft(strike(size, "wood"), 16000).abs()
        assert abs(int(spectrum.argmax()) - pitch) < 30, size
    share = {m: float((s := strike("medium", m).square())[2400:].sum() / s.sum()) for m in world.MATERIALS}
    assert share["metal"] > 4 * share["rubber"] > 16 * share["wood"], share
    scene = made("bounce", None, "ball", material="wood")
    hits, audio = scene.impacts(SPEC.seconds), playground.sound([scene], SPEC)[0]
    peaks = [float(audio[int(h.time * 16000) :][:400].abs().max()) for h in hits[:3]]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 0.2
