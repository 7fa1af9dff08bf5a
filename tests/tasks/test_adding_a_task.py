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
from tokenizers_av.clip import Clip
from train.data import MediaSpec
from train.data.playground import Playground
from train.lm import LMJob, Mix, mixture
from train.tokens import collect

model, out = Path(sys.argv[2]), Path(sys.argv[3])
old = AVPoet.from_pretrained(model, dtype="float32")
assert SPECIAL_TOKENS[-1] == "<task_reversal>"
try:
    old.generate("reversal", video=Clip(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), 8.0))
except ValueError as error:
    print(error)
codec, vocabulary = old.codec, old.lm.vocabulary
spec = MediaSpec(old.config.layout.n_frames, 16)
clips = collect(Playground(), codec.video, codec.audio, spec, spec.n_frames, range(3))
backwards = codec.video.encode(Playground().batch([0], spec).video.flip(2))[0]
print("ids", float((clips.conditions["reversal"][0] == backwards).float().mean()))
new = Vocabulary.build(SPECIAL_TOKENS, vocabulary["visual"].size, [vocabulary[f"audio_{i}"].size for i in range(2)],
                       vocabulary["text"].size)
job = LMJob(LM(lm_config("debug", new)), codec.text, old.config.layout, clips, clips, clips, batch_size=2)
assert any(m.task == "reversal" and m.weight == 0.05 for m in mixture(clips.conditions))
loss, parts = job.loss(job.model, job.sequences(Mix("reversal"), clips, random.Random(0)), 0.5)
loss.backward()
assert list(parts) == ["reversal/visual"] and float(job.model.embed.weight.grad.abs().sum()) > 0
AVPoet(codec.video, codec.audio, codec.text, job.model, old.config).save_pretrained(out / "model")
Clip(torch.zeros(20, 24, 32, 3, dtype=torch.uint8), 8.0).save(out / "clip.mp4")
words = ["generate", "reversal", str(out / "clip.mp4"), "--out", str(out / "back.mp4"), "--model", str(out / "model")]
assert cli.main(words) == 0
"""


def test_the_page_works(debug_model: Path, tmp_path: Path) -> None:
    code = re.search(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL).group(1)
    assert len(code.splitlines()) < 40
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "reversal.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(rows), str(debug_model), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was not trained for reversal" in done.stdout
    assert float(done.stdout.split("ids ")[1].split()[0]) > 0.9
    assert (tmp_path / "back.mp4").stat().st_size > 500
