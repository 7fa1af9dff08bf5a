"""The pipeline with an untrained model: lengths, determinism, streams, long video, and refusals."""

from __future__ import annotations

import copy
import inspect
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from lm import LM
from tasks import TASKS, AVPoet, InputError, PoetConfig
from tasks.cli import default_out
from tasks.codec import Codec, even_size, to_network
from tasks.long_video import steps
from tasks.model_folder import SamplingDefaults
from tasks.options import Options
from tasks.reconstruct import Distance, Reconstruction, reconstructed
from tasks.sequence import TokenSample
from tasks.source import Source
from tasks.stream import join
from tasks.table import get_task
from tokenizers_av.clip import Clip, MediaError, read_clip
from tokenizers_av.media_frames import stretch

NOTHING = Clip(torch.zeros(1, 16, 16, 3, dtype=torch.uint8), 8.0)


def inputs_of(task, clip) -> dict:
    arguments = {"mask": (4, 4, 16, 12), "last": clip, "left": 8}
    given = {b.argument: {"prompt": "a red ball"}.get(b.argument, clip) for b in task.inputs}
    return given | {a.name: arguments[a.name] for a in task.arguments if a.name in arguments}


def same(a: Clip, b: Clip) -> bool:
    frames = a.frames is b.frames is None or torch.equal(a.frames, b.frames)
    return frames and (a.samples is b.samples is None or torch.equal(a.samples, b.samples))


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_each_task_makes_a_playable_file(task, poet, clip, tmp_path):
    made = poet.generate(task.name, **inputs_of(task, clip))
    path = tmp_path / default_out(task).replace("out", "x")
    made.save(path)
    read = read_clip(path)
    if task.is_image:
        assert read.frames.shape == (1, 16, 16, 3)
    elif task.output("video"):
        n_frames = 9 if task.argument_of_length is None else 18  # of 2.2 seconds
        size = (16, 16)
        if task.input("video"):  # in the proportions of the clip, or of what is painted round it
            size = even_size((24, 40) if task.name == "outpainting" else (24, 32), (16, 16))
        assert read.frames.shape == (n_frames, *size, 3) and read.fps == 8
        if task.output("audio") or task.argument_of_length:  # a new sound, or that of the input
            assert len(made.samples) == n_frames * 2000 and abs(len(read.samples) - n_frames * 2000) <= 1
        else:
            assert made.samples is None
    elif task.input("video"):  # sound for a clip keeps the clip
        assert torch.equal(made.frames, clip.frames) and made.fps == clip.fps
        assert len(made.samples) == 35200
    else:
        assert made.frames is None and len(read.samples) == 18000


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_seed_decides_everything(task, poet, clip):
    given = inputs_of(task, clip)
    first, again = (poet.generate(task.name, **given, seed=3, temperature=2.0) for _ in range(2))
    other = poet.generate(task.name, **given, seed=4, temperature=2.0)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_each_task_has_its_own_method(task, poet, clip):
    method = getattr(poet, task.name)
    assert method.__doc__
    known = inspect.signature(method).parameters
    assert {b.argument for b in task.inputs} | {a.name for a in task.arguments} <= set(known)
    assert same(method(**inputs_of(task, clip)), poet.generate(task.name, **inputs_of(task, clip)))


@pytest.mark.parametrize("seconds", [0.25, None, 2.6])
@pytest.mark.parametrize("sound", [True, False])
def test_parts_of_a_stream_are_the_whole(poet, seconds, sound):
    parts = list(poet.stream.text_to_video("a red ball", seconds=seconds, sound=sound))
    whole = poet.text_to_video("a red ball", seconds=seconds, sound=sound)
    assert same(join(parts), whole)
    assert whole.n_frames == (9 if seconds is None else round(seconds * 8))
    assert (len(whole.samples) == round(whole.seconds * 16000)) if sound else whole.samples is None
    if seconds is None:
        assert [p.n_frames for p in parts][:3] == [1, 4, 4]  # a latent frame at a time


def test_a_stream_decodes_each_latent_frame_once(poet):
    runs: list[int] = []
    hook = poet.codec.video.decoder.register_forward_hook(lambda _, inputs, output: runs.append(inputs[0].shape[1]))
    poet.text_to_video("a red ball", sound=False)
    hook.remove()
    assert runs == [1, 1, 1]


def test_a_longer_video_begins_like_the_shorter(poet):
    short, long = poet.text_to_video("a red ball"), poet.text_to_video("a red ball", seconds=2)
    assert torch.equal(long.frames[:9], short.frames)
    assert torch.equal(long.samples[:17920], short.samples[:17920])


def test_an_image_is_the_first_frame(poet, clip):
    made = poet.image_to_video(clip)
    frame = stretch(clip.frames[:1], 16, 16)
    assert torch.equal(made.frames[:1], stretch(poet.codec.decode_video(poet.codec.encode_video(frame)), 14, 18))


def test_the_context_is_the_end_of_the_video(poet, clip):
    made = poet.frame_prediction(clip, sound=False)
    tail = torch.cat(list(Source(clip).frames(8.0, (16, 16), 16000)))[-5:]
    assert torch.equal(made.frames[:5], stretch(poet.codec.decode_video(poet.codec.encode_video(tail)), 14, 18))


@pytest.mark.parametrize("name", ["image_to_video", "frame_prediction", "audio_video_continuation", "extend"])
def test_the_whole_picture_goes_in_and_its_proportions_come_out(name, poet, monkeypatch):
    """A picture three times as high as wide, red above, green in the middle, blue below."""
    frames = torch.zeros(9, 60, 20, 3, dtype=torch.uint8)
    for i in range(3):
        frames[:, 20 * i : 20 * i + 20, :, i] = 255
    clip, shown = Clip(frames, 8.0, torch.zeros(18000), 16000), []
    encode = Codec.encode_video
    monkeypatch.setattr(Codec, "encode_video", lambda self, frames: shown.append(frames) or encode(self, frames))
    if name == "extend":
        made = poet.extend(clip, 1.0)
    else:
        given = inputs_of(TASKS[name], clip)
        made = poet.generate(name, **given)
        assert same(poet.generate(name, **{key: [value] * 2 for key, value in given.items()})[0], made)
    assert made.frames.shape[1:] == (28, 10, 3)  # even, 280 pixels for the model's 256
    assert shown[0][0, [0, 8, 15], 8].argmax(-1).tolist() == [0, 1, 2]
    if name == "extend":
        assert made.frames[0, [0, 14, 27], 5].argmax(-1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.7])
def test_extend_adds_exactly_the_seconds(poet, clip, clip_file, seconds, tmp_path):
    n = 18 + round(seconds * 8)  # 2.2 s are 17.6 frames of an eighth
    for media in (clip_file, clip):
        longer = poet.extend(media, seconds, ["a red ball", "a cube"][: math.ceil(seconds)])
        assert longer.n_frames == n and len(longer.samples) == n * 2000
    poet.extend(clip, seconds, ["a red ball", "a cube"][: math.ceil(seconds)], out=tmp_path / "long.mp4")
    written = read_clip(tmp_path / "long.mp4")
    assert written.n_frames == n and abs(len(written.samples) - n * 2000) <= 1
    grey, wanted = (x.frames.float().mean(-1) for x in (written, longer))  # video files keep less of colour
    assert (grey - wanted).abs().mean() < 12


def test_extend_keeps_the_clip_and_its_sound(poet, clip, silent_file):
    longer = poet.extend(clip, 0.5)
    source = join(Source(clip).windows(fps=8.0, size=(16, 16), fit="stretch", sample_rate=16000))
    assert torch.equal(longer.frames[:18], stretch(source.frames, 14, 18))
    assert torch.equal(longer.samples[:35200], clip.samples)
    quiet = poet.extend(silent_file, 0.5)
    assert quiet.samples[:36000].abs().max() == 0 and quiet.samples[36000:].abs().max() > 0


def test_extend_holds_a_bounded_number_of_frames(poet, clip):
    """Each part is a window, whatever the length."""
    sizes = [p.n_frames for p in poet.stream.extend(clip, 4.0)]
    assert max(sizes) <= 8 and sum(sizes) == 18 + 32


def test_windows_use_what_past_there_is(poet):
    layout = poet.config.layout
    assert [(s.n_context, s.n_new) for s in steps(layout, 1, 10)] == [(1, 8), (2, 2)]
    assert [(s.n_context, s.n_new) for s in steps(layout, 2, 3)] == [(2, 3)]
    assert sum(s.n_new for s in steps(layout, 9, 101)) == 101


@pytest.mark.parametrize("seconds", [None, 0.3, 1.5])
def test_sound_is_as_long_as_the_video(poet, clip, clip_file, seconds):
    for media in (clip, clip_file):
        made = poet.video_to_audio(media, seconds=seconds)
        n = 22 if seconds is None else round(seconds * 10)
        assert made.frames.shape == (n, 24, 32, 3) and len(made.samples) == n * 1600


def test_a_video_that_gets_a_sound_goes_by_a_frame_at_a_time(poet, clip):
    assert {p.n_frames for p in poet.stream.video_to_audio(clip)} == {1}


def test_prompt_options_change_the_result(poet):
    plain = poet.text_to_video("a red ball", temperature=2.0, sound=False)
    assert not same(plain, poet.text_to_video("a red ball", temperature=2.0, sound=False, guidance_scale=9.0))
    guided = poet.text_to_video("a red ball", temperature=2.0, sound=False, guidance_scale=9.0, negative_prompt="x")
    assert not same(guided, poet.text_to_video("a red ball", temperature=2.0, sound=False, guidance_scale=9.0))


@pytest.mark.parametrize(
    ("task", "given", "left"),
    [
        ("text_to_video", {"prompt": "a red ball"}, ["<bos>", "<task_video>"]),
        ("video_to_audio", {}, ["<bos>", "<task_audio>"]),
        ("audio_to_video", {}, ["<bos>", "<task_video>"]),
        ("audio_to_video", {"prompt": "a red ball"}, ["<bos>", "<task_video>", "<boa_i>", "<eoa_i>"]),
        ("image_to_video", {"prompt": "a red ball"}, ["<bos>", "<task_video>", "<bov_i>", "<eov_i>"]),
    ],
)
def test_what_guidance_pushes_away_from(poet, clip, monkeypatch, task, given, left):
    """The special ids of the unguided prefix: without the prompt, or else without the clip something is made for."""

    class Asked(Exception):
        pass

    def asked(prefix, plan, *, unconditional=None, guidance_scale, **options):
        raise Asked(unconditional, guidance_scale)

    monkeypatch.setattr(poet.generator.engine, "stream", asked)
    media = {b.argument: clip for b in TASKS[task].inputs if b.kind != "text"}
    with pytest.raises(Asked) as caught:
        poet.generate(task, **media, **given, guidance_scale=2.0)
    other, scale = caught.value.args
    special = {poet.generator.vocab.special(name): name for name in poet.generator.vocab.special_tokens}
    assert [special[i] for i in other.ids[0].tolist() if i in special] == left and scale == 2


def test_guidance_costs_nothing_where_no_id_is_guided(poet, monkeypatch):
    seen = []
    own = SamplingDefaults(2.0, {"audio": {"guided": False}})
    monkeypatch.setattr(poet, "generator", replace(poet.generator, defaults=own))
    stream = poet.generator.engine.stream

    def spied(*args, **options):
        seen.append((options["unconditional"] is None, options["guidance_scale"]))
        return stream(*args, **options)

    monkeypatch.setattr(poet.generator.engine, "stream", spied)
    poet.text_to_audio("a red ball")
    poet.text_to_video("a red ball")
    assert seen == [(True, 1.0), (False, 2.0)]


def test_a_future_of_nothing_is_refused(poet, clip):
    for task in ("frame_prediction", "audio_video_continuation"):
        with pytest.raises(InputError, match=r"the last 0\.625 seconds of the clip; ask for more"):
            poet.generate(task, video=clip, seconds=0.6)
    short = Clip(clip.frames[:4], 8.0)  # whose last whole latent frame is one frame
    assert poet.frame_prediction(short, seconds=0.25, sound=False).n_frames == 2
    with pytest.raises(InputError, match=r"the last 0\.125 seconds"):
        poet.frame_prediction(short, seconds=0.1)


def test_a_picture_for_a_sound_of_unknown_length(poet, clip, monkeypatch):
    opened = Source.__init__

    def unknown(self, *args, **options):
        opened(self, *args, **options)
        self.seconds = None

    whole = poet.audio_to_video(clip)
    monkeypatch.setattr(Source, "__init__", unknown)
    assert same(poet.audio_to_video(clip), whole)


def test_a_clip_and_its_file_are_read_alike(tmp_path):
    frames = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3) * 4
    Clip(frames.contiguous(), 60.0).save(tmp_path / "x.mkv")
    shown = [
        join(Source(media).windows(fps=8.0, sample_rate=16000, seconds=0.3)).frames[:, 0, 0, 0].float() / 4
        for media in (Clip(frames, 60.0), tmp_path / "x.mkv")
    ]  # every second one lies in the middle of two frames
    assert shown[0].tolist() == shown[1].round().tolist() == [0, 7, 15, 22, 30, 37, 45, 52]


def test_guidance_without_a_prompt_is_refused_unless_it_is_off(poet):
    off = poet.image_to_video(NOTHING, sound=False, guidance_scale=1.0)
    assert same(off, poet.image_to_video(NOTHING, sound=False))


@pytest.mark.parametrize("seconds", [0.5, None, 2.0])
def test_progress_counts_to_its_total(poet, seconds):
    seen: list[tuple[int, int]] = []
    poet.text_to_video("a red ball", seconds=seconds, progress=lambda *x: seen.append(x))
    assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


@pytest.fixture(scope="module")
def codec(poet) -> Codec:
    """A video tokenizer all of whose layers matter; a new one's residual branches are zero."""
    video = copy.deepcopy(poet.codec.video)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in video.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Codec(video, poet.codec.audio, poet.codec.text, poet.config, torch.device("cpu"))


@pytest.mark.parametrize("cuts", [[11], [1, 4, 4, 2], [3, 2, 6], [1] * 11, [9, 0, 2]], ids=str)
def test_a_clip_in_pieces_has_the_ids_and_frames_of_the_whole(codec, cuts):
    frames = torch.randint(256, (11, 20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = codec.encode_video(frames)
    encode, decode = codec.video_encoder(), codec.video_decoder()
    known = 0
    ids = []
    for part in frames.split(cuts):
        known += len(part)
        ids += encode(part) if len(part) else []
        assert len(ids) == math.ceil(known / 4)  # as soon as the last frame of a group is there
    ids += encode(None)
    assert torch.equal(torch.cat(ids), whole)
    shown = torch.cat([decode(part) for part in whole.split([1, 2, 1])])
    assert torch.equal(shown, codec.decode_video(whole)) and shown.shape == (13, 24, 24, 3)
    assert not torch.equal(shown[9:], codec.decode_video(whole[2:])[1:])  # the past is known


@pytest.mark.parametrize("size", [None, (24, 32), (17, 21)])
def test_a_picture_is_reconstructed_as_one_clip(codec, clip, size):
    parts = list(reconstructed(codec, Source(clip), size))
    before, after = join(p.original for p in parts).frames, join(p.decoded for p in parts).frames
    assert torch.equal(before, join(Source(clip).windows(fps=8.0, size=size or (16, 16), sample_rate=16000)).frames)
    whole = codec.video.reconstruct(to_network(before))[0].permute(1, 2, 3, 0)
    assert after.shape == before.shape == (18, *(size or (16, 16)), 3)
    assert (after - (whole + 1) * 127.5).abs().max() < 0.51
    assert [p.original.n_frames for p in parts if p.original.n_frames] == [1, 4, 4, 4, 4, 1]
    assert torch.equal(torch.cat([p.ids for p in parts if p.ids is not None]), codec.encode_video(before))


def test_the_distance_is_the_mean_over_frames():
    distance = Distance(codebook_size=256)
    for error, ids in ((51, [3]), (0, [3, 5])):  # 20 log10(5) dB, and nothing lost
        frames = torch.zeros(1, 8, 16, 3, dtype=torch.uint8)
        distance.add(Reconstruction(Clip(frames, 8.0), Clip(frames + error, 8.0), torch.tensor([[ids]])))
    assert distance.psnr == pytest.approx((20 * math.log10(5) + 100) / 2)
    assert distance.bits_per_pixel == 8 * 3 / (2 * 8 * 16)
    assert distance.codes == {3, 5} and distance.n_frames == 2 and not distance.sound


def test_reconstruction_in_windows_is_the_sound_in_one(poet, clip):
    made = poet.reconstruct(clip)
    assert made.n_frames == 18 and len(made.samples) == 36000
    whole = poet.codec.decode_audio(poet.codec.encode_audio(clip.samples))
    assert len(whole) == 35200
    assert (made.samples[:35200] - whole).abs().max() < 1e-4


def test_fewer_levels_are_decoded_as_by_the_tokenizer(poet, clip):
    sound = Clip(None, 8.0, clip.samples, 16000)
    parts = list(reconstructed(poet.codec, Source(sound), compare_levels=True))
    ids = poet.codec.encode_audio(clip.samples)
    assert torch.equal(torch.cat([p.sound_ids for p in parts], 1), ids)
    for k in (1, 2):
        whole = poet.codec.decode_audio(ids[:k])
        streamed = torch.cat([p.of_levels[k] for p in parts])
        assert len(streamed) == len(whole) and (streamed - whole).abs().max() < 1e-5
    fewer = poet.reconstruct(sound, levels=1).samples
    assert torch.equal(fewer, torch.cat([p.of_levels[1] for p in parts]))
    assert (fewer - poet.reconstruct(sound).samples).abs().max() > 1e-3


def test_a_full_scale_sound_of_another_rate_is_coded_though_resampling_overshoots(poet):
    square = (torch.arange(44100) // 50 % 2 * 2 - 1).float()
    assert len(poet.reconstruct(Clip(None, 8.0, square, 44100)).samples) == 16000


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_clip_whose_sound_is_out_of_range_is_refused_at_once(rate, poet):
    with pytest.raises(InputError, match="divide by 32768"):
        poet.reconstruct(Clip(None, 8.0, torch.full((rate,), 20000.0), rate))


@pytest.mark.parametrize("kind", ["clip_file", "photo", "tone"])
def test_everything_can_be_reconstructed(kind, poet, request):
    parts = list(reconstructed(poet.codec, Source(request.getfixturevalue(kind))))
    assert sum(p.original.n_frames for p in parts) == {"clip_file": 18, "photo": 1, "tone": 0}[kind]
    before, after = join(p.original for p in parts), join(p.decoded for p in parts)
    assert before.n_frames == after.n_frames
    assert (before.samples is None) == (after.samples is None)
    assert before.samples is None or len(before.samples) == len(after.samples)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: p.text_to_video(""), "prompt is empty"),
        (lambda p: p.text_to_video("x" * 1001), "1,001 characters"),
        (lambda p: p.text_to_video(7), "prompt is int"),
        (lambda p: p.text_to_video("x", seconds=0), "seconds=0"),
        (lambda p: p.text_to_video("x", seconds=float("nan")), "seconds=nan"),
        (lambda p: p.text_to_video("x", seconds=1e9), "24 hours"),
        (lambda p: p.text_to_video("x", seed=-1), "seed=-1"),
        (lambda p: p.text_to_video("x", top_p=0.0), "top_p=0.0"),
        (lambda p: p.text_to_video("x", temperature=-1.0), "temperature=-1.0"),
        (lambda p: p.text_to_video("x", top_k=-1), "top_k=-1"),
        (lambda p: p.text_to_video("x", guidance_scale=float("inf")), "guidance_scale=inf"),
        (lambda p: p.generate("text_to_smell"), "unknown task"),
        (lambda p: p.generate("text_to_video"), "needs a prompt"),
        (lambda p: p.generate("video_to_audio"), "needs a video"),
        (lambda p: p.generate("unconditional", prompt="x"), "takes no prompt"),
        (lambda p: p.generate("text_to_image", prompt="x", seconds=1.0), "takes no seconds"),
        (lambda p: p.generate("text_to_video", prompt="x", sped=1), "unexpected keyword argument 'sped'"),
        (lambda p: p.image_to_video(NOTHING, negative_prompt="x"), "negative_prompt needs a prompt"),
        (lambda p: p.generate("video_to_audio", video=NOTHING, negative_prompt="x"), "negative_prompt needs a prompt"),
        (lambda p: p.extend(NOTHING, 1.0, negative_prompt="x"), "negative_prompt needs a prompt"),
        (lambda p: p.image_to_video(NOTHING, guidance_scale=2.0), "guidance_scale=2 needs a prompt"),
        (lambda p: p.generate("unconditional", guidance_scale=0.5), r"guidance_scale=0\.5 needs a prompt"),
        (lambda p: p.extend(NOTHING, 1.0, guidance_scale=2.0), "guidance_scale=2 needs a prompt"),
        (lambda p: p.inpainting(Clip(NOTHING.frames, 8.0), [1, 1, 4, 4]), r"expected \(X, Y, W, H\).* a list is one"),
        (lambda p: p.reconstruct("clip.mp4", size=(8, 16)), "size 8x16: expected height and width of 16 to 1920"),
        (lambda p: p.reconstruct("clip.mp4", levels=3), "levels 3: this audio tokenizer has 2, expected 1 to 2"),
        (lambda p: p.extend(3, 1.0), "a clip is a Clip or a path"),
    ],
)
def test_wrong_values_are_refused_at_once(poet, call, match):
    with pytest.raises(InputError, match=match):
        call(poet)


def test_wrong_media_are_refused_before_the_first_part(poet, tone, tmp_path, monkeypatch):
    with pytest.raises(MediaError, match="no such file"):
        poet.stream.video_to_audio(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match="no picture"):
        poet.stream.image_to_video(tone)
    with pytest.raises(MediaError, match="the clip: holds no frame"):
        poet.stream.image_to_video(Clip(NOTHING.frames[:0], 8.0))
    monkeypatch.setattr("tasks.pipeline.ClipWriter", lambda *a, **k: pytest.fail("opened the output first"))
    for out in (None, tmp_path / "x.mp4"):
        with pytest.raises(MediaError, match=r"none\.mp4: no such file"):
            poet.extend(tmp_path / "none.mp4", 1.0, out=out)
        with pytest.raises(MediaError, match="no picture"):
            poet.extend(tone, 1.0, out=out)
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_changes_nothing(poet, debug_model, tmp_path):
    poet.save_pretrained(tmp_path / "copy")
    again = AVPoet.from_pretrained(tmp_path / "copy", dtype="float32")
    assert again.config == poet.config
    assert same(again.text_to_video("a red ball"), poet.text_to_video("a red ball"))
    assert json.loads((debug_model / "config.json").read_text())["avpoet_format"] == 1


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("huge", "expected 'tiny', a model folder"),
        ("./nowhere/at/all", "expected 'tiny', a model folder"),
        ("", "expected 'tiny'"),
        (__file__, "is a file"),
    ],
)
def test_models_that_are_not_there_are_named(name, match):
    with pytest.raises(InputError, match=match):
        AVPoet.from_pretrained(name)


def test_damaged_model_folders_are_named(debug_model, tmp_path):
    with pytest.raises(InputError, match=r"lacks config\.json, video_tokenizer"):
        AVPoet.from_pretrained(tmp_path)
    copy = tmp_path / "m"
    shutil.copytree(debug_model, copy)
    (copy / "lm" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="cannot be loaded"):
        AVPoet.from_pretrained(copy)
    (copy / "config.json").write_text('{"avpoet_format": 99}')
    with pytest.raises(InputError, match="avpoet_format is 99"):
        AVPoet.from_pretrained(copy)
    (copy / "config.json").write_text("[")
    with pytest.raises(InputError, match="not a readable model config"):
        AVPoet.from_pretrained(copy)


def test_parts_must_fit_each_other(poet):
    from dataclasses import replace

    config = replace(poet.config, size=(32, 32))
    with pytest.raises(InputError, match="height in pixels: 32 and 16"):
        AVPoet(poet.codec.video, poet.codec.audio, poet.codec.text, poet.lm, config)


def test_a_model_without_the_task_says_so(poet):
    from lm import Vocabulary, lm_config

    codec = poet.codec
    old = [t for t in poet.lm.vocabulary.special_tokens if t != "<task_audio>"]
    vocab = Vocabulary.build(old, codec.video.codebook_size, [16, 16], codec.text.vocab_size)
    older = AVPoet(codec.video, codec.audio, codec.text, LM(lm_config("debug", vocab)), poet.config)
    frames = torch.zeros(9, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="not trained for video-to-audio"):
        older.video_to_audio(Clip(frames, 8.0))


def test_a_journal_knows_the_model_and_how_it_computes(poet):
    codec, other = poet.codec, PoetConfig(poet.config.layout, poet.config.size, SamplingDefaults(guidance_scale=3.0))
    parts = (codec.video, codec.audio, codec.text, poet.lm)
    again, int8, compiled = (AVPoet(*parts, poet.config, **how) for how in ({}, {"int8": True}, {"compile": True}))
    known = [p._identity() for p in (poet, int8, compiled, AVPoet(*parts, other))]
    assert again._identity() == poet._identity() and len(set(known)) == 4


def test_device_and_dtype_are_checked(debug_model):
    with pytest.raises(InputError, match="device 'warp'"):
        AVPoet.from_pretrained(debug_model, device="warp")
    with pytest.raises(InputError, match="dtype 'int3'"):
        AVPoet.from_pretrained(debug_model, dtype="int3")


def test_lists_give_lists_each_as_alone(poet, clip):
    prompts = ["a red ball", "a blue cube that slides to the right", "a green star"]
    made = poet.text_to_video(prompts, seed=3, temperature=2.0)
    assert len(made) == 3
    for i, (prompt, one) in enumerate(zip(prompts, made)):
        assert same(one, poet.text_to_video(prompt, seed=3 + i, temperature=2.0))
    again, first = poet.generate("unconditional", seed=[7, 3], sound=False)
    assert same(again, poet.unconditional(seed=7, sound=False)) and not same(again, first)
    pictures = poet.image_to_video([clip, Clip(clip.frames.flip(2), 8.0)], "a red ball", seed=[1, 1])
    assert same(pictures[0], poet.image_to_video(clip, "a red ball", seed=1)) and not same(*pictures)
    future = poet.audio_video_continuation([clip, clip])
    assert same(future[1], poet.audio_video_continuation(clip, seed=1))
    painted = poet.inpainting([clip, clip], mask=[(4, 4, 16, 12), (0, 0, 16, 12)], seconds=1, seed=[0, 0])
    assert same(painted[1], poet.inpainting(clip, mask=(0, 0, 16, 12), seconds=1))
    with pytest.raises(InputError, match="prompt has 2, seed has 3"):
        poet.text_to_video(["a", "b"], seed=[1, 2, 3])
    assert poet.text_to_video([]) == []


def test_a_task_may_have_its_own_sampling(poet):
    ranges = {"visual": {"temperature": 1.0, "top_k": 9}, "audio": {"temperature": 0.7}}
    own = SamplingDefaults(3.0, ranges, {"inpainting": {"guidance_scale": 1.5, "temperature": 0.0}})
    assert own.of("text_to_video").guidance_scale == 3.0 and own.of("text_to_video").ranges == ranges
    assert own.of("inpainting").guidance_scale == 1.5
    assert own.of("inpainting").ranges["visual"] == {"temperature": 0.0, "top_k": 9}
    other, layout = replace(poet.generator, defaults=own), poet.config.layout
    sample = TokenSample(condition=torch.zeros(layout.latent_frames, layout.height, layout.width, dtype=torch.int64))
    one, two = (
        list(other.blocks(get_task("inpainting"), sample, Options(), seed=seed, sound=False))[-1].video
        for seed in (1, 2)
    )
    assert torch.equal(one, two)  # at temperature 0 seeds do not count
