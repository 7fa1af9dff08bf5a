"""The page that shows how a task is added: its file, put where it says, is trained, generates, and is a command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "tasks/README.md").read_text(encoding="utf-8")

RUN = """
import sys, tasks.rows
from pathlib import Path
tasks.rows.__path__.append(sys.argv[1])
import random, torch
from lm import LM, Vocabulary, lm_config
from tasks import SPECIAL_TOKENS, TASKS, AVPoet, cli
from tasks.task import Example
from tokenizers_av.clip import Clip
from tokenizers_av.media_frames import stretch
from train.data import MediaSpec
from train.data.playground import Playground
from train.evaluate.generation import to_frames
from train.lm import LMJob, Mix, mixture
from train.tokens import collect

torch.manual_seed(0)
model, out = Path(sys.argv[2]), Path(sys.argv[3])
old = AVPoet.from_pretrained(model, dtype="float32")
assert SPECIAL_TOKENS[-1] == "<task_mirror>"
try:
    old.generate("mirroring", video=Clip(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), 8.0))
except ValueError as error:
    print(error)
codec, vocabulary = old.codec, old.lm.vocabulary
spec = MediaSpec(old.config.layout.n_frames, 16)
clips = collect(Playground(), codec.video, codec.audio, spec, spec.n_frames, range(3))
frames = to_frames(Playground().batch([0], spec, audio=False).video)[0]
mirrored = Clip(frames.flip(2), spec.fps)
shown = codec.encode_video(mirrored.frames)
print("ids", float((clips.conditions["mirroring"][0] == shown).float().mean()))
new = Vocabulary.build(SPECIAL_TOKENS, vocabulary["visual"].size, [vocabulary[f"audio_{i}"].size for i in range(2)],
                       vocabulary["text"].size)
job = LMJob(LM(lm_config("debug", new)), codec.text, old.config.layout, clips, clips, clips, batch_size=2)
assert any(m.task == "mirroring" and m.weight == 0.05 for m in mixture(clips.conditions))
loss, parts = job.loss(job.model, job.sequences(Mix("mirroring"), clips, random.Random(0)), 0.5)
loss.backward()
assert list(parts) == ["mirroring/visual"] and float(job.model.embed.weight.grad.abs().sum()) > 0
AVPoet(codec.video, codec.audio, codec.text, job.model, old.config).save_pretrained(out / "model")
Clip(torch.zeros(20, 24, 32, 3, dtype=torch.uint8), 8.0).save(out / "clip.mp4")
words = ["generate", "mirroring", str(out / "clip.mp4"), "--out", str(out / "mirrored.mp4")]
assert cli.main([*words, "--model", str(out / "model")]) == 0

# what generation shows for a mirrored clip is what training shows for the clip
poet, asked = AVPoet.from_pretrained(out / "model", dtype="float32"), []
generator = type(poet.generator)
blocks = generator.blocks
generator.blocks = lambda self, row, sample, *a, **k: asked.append(sample) or blocks(self, row, sample, *a, **k)
poet.generate("mirroring", video=mirrored)
assert len(asked) == 1 and torch.equal(asked[0].condition, shown)
condition = TASKS["mirroring"].condition
made = lambda frames, first=0: condition.open(tuple(frames.shape[1:3]), (16, 16), spec.fps).frames(frames, first)
taught = lambda frames: condition.example(Example(frames, frames), random.Random(0))
assert torch.equal(made(frames.flip(2)), taught(frames))
large = torch.randint(0, 256, (9, 24, 40, 3), dtype=torch.uint8)
off = made(large.flip(2)).int() - taught(stretch(large, 16, 16)).int()
print("off", int(off.abs().max()))
# and, as windows overlap, it is the same for a frame in each of them
assert torch.equal(made(large[4:], 4), made(large)[4:])
"""


def test_the_page_works(debug_model: Path, tmp_path: Path) -> None:
    code = re.search(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL).group(1)
    assert len(code.splitlines()) < 40
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "mirroring.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(rows), str(debug_model), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was not trained for mirroring" in done.stdout
    assert float(done.stdout.split("ids ")[1].split()[0]) > 0.9
    assert int(done.stdout.split("off ")[1].split()[0]) <= 1  # a grey level, where resampling rounds
    assert (tmp_path / "mirrored.mp4").stat().st_size > 500
