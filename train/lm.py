"""Training of the transformer on a mixture of tasks (VideoPoet, arXiv:2312.14125, §4).

Each step draws one task, so all its sequences have one length but for the prompt. Images first, videos after (§4.2).
Prompts are dropped at random, which teaches the unguided half of classifier-free guidance.
"""
# Shapes: B batch, L sequence

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm import IGNORE_INDEX, LM, Vocabulary
from tasks.errors import InputError
from tasks.model_folder import PoetConfig, read_config
from tasks.sequence import Layout, Sequence, TokenSample, build
from tasks.table import TASKS
from tasks.task import Task
from tokenizers_av.text import TextTokenizer
from train.checkpoint import save_model
from train.optimizers import matrix_optimizers
from train.tokens import TokenSet


@dataclass(frozen=True)
class Mix:
    """A share of the steps for one kind of sequence."""

    task: str
    weight: float = 1.0
    sound: bool = False

    @property
    def name(self) -> str:
        audio = TASKS[self.task].output("audio")
        return self.task + ("+sound" if self.sound and audio is not None and audio.optional else "")


IMAGES_FIRST = 0.25  # share of the training in which IMAGE_SHARE of the steps are images
IMAGE_SHARE = 0.9
N_SAMPLED = 8  # sequences of each kind that are looked at while training goes on
IMAGES = Mix("text_to_image")


def mixture(conditions: Collection[str]) -> tuple[Mix, ...]:
    """What is trained besides images: the rows that have a share, of those with a condition only `conditions`.

    Where sound is optional, half of the sequences have it.
    """
    found = []
    for name, task in TASKS.items():
        if not task.share or (task.condition is not None and name not in conditions):
            continue
        audio = task.output("audio")
        if audio is not None and audio.optional:
            found += [Mix(name, task.share / 2), Mix(name, task.share / 2, sound=True)]
        else:
            found.append(Mix(name, task.share, sound=audio is not None))
    return tuple(found)


@dataclass
class Batch:
    ids: Tensor  # (B, L) int64
    labels: Tensor  # (B, L) int64, IGNORE_INDEX at padding too
    positions: Tensor  # (B, L, 3) float32
    prefix_len: Tensor  # (B,) int64
    mask: Tensor  # (B, L) bool, False at padding
    task: str  # name of the task, with "+sound" where the sequences end in sound


def collate(sequences: list[Sequence], pad: int, task: str) -> Batch:
    """Pad sequences on the right, where attention needs no mask to pass padding over, to one length."""
    L = max(len(s.ids) for s in sequences)
    B = len(sequences)
    ids, labels = torch.full((B, L), pad), torch.full((B, L), IGNORE_INDEX)
    positions, mask = torch.zeros(B, L, 3), torch.zeros(B, L, dtype=torch.bool)
    for i, s in enumerate(sequences):
        n = len(s.ids)
        ids[i, :n], labels[i, :n], positions[i, :n], mask[i, :n] = s.ids, s.labels, s.positions, True
    prefix_len = torch.tensor([s.prefix_len for s in sequences])
    return Batch(ids, labels, positions, prefix_len, mask, task)


class LMJob:
    """Fits an `LM` to token sets. Block matrices are updated by Muon, everything else by AdamW.

    `batch_size` counts silent videos; of longer sequences there are fewer in a step, of shorter ones more. Clips may be
    longer than the model's: tasks that go on from what they are shown are trained on windows from anywhere in them,
    as videos of any length need. With `images_first` a share of the training draws images above all, as a model needs
    that starts from chance. A prompt is left out with probability `drop_text`, and where the caption is empty. Metrics
    come from `held_out`, a set of clips that is never trained on. `tokenizers` are the fingerprints of those that made
    the ids: a training goes on with the same only. `whole` is the config of the whole model, for the folder above.
    """

    name = "lm"
    lr = 3e-3
    ema = 0.99
    critic = None

    def __init__(
        self, model: LM, text: TextTokenizer, layout: Layout, clips: TokenSet, images: TokenSet, held_out: TokenSet,
        *, batch_size: int = 32, seed: int = 0, drop_text: float = 0.1, images_first: bool = True,
        tokenizers: Mapping[str, str] | None = None, whole: PoetConfig | None = None,
    ) -> None:  # fmt: skip
        self.model, self.text, self.layout = model, text, layout
        self.clips, self.images, self.held_out = clips, images, held_out
        self.batch_size, self.seed, self.drop_text, self.images_first = batch_size, seed, drop_text, images_first
        self.tokenizers, self.whole = tokenizers or {}, whole
        self.vocab: Vocabulary = model.vocabulary
        self.block_size = model.config.block_size
        self.videos = mixture(clips.conditions)
        if clips.video.shape[1] < layout.latent_frames:
            raise ValueError(f"clips of {clips.video.shape[1]} latent frames, need {layout.latent_frames}")

    def compile(self) -> None:
        for block in self.model.blocks:  # which share what is compiled once for all lengths, of which there are many
            block.compile(dynamic=True)

    @property
    def settings(self) -> dict[str, Any]:
        text = hashlib.sha256(self.text.model_bytes).hexdigest()
        return {
            "batch_size": self.batch_size, "lr": self.lr, "block_size": self.block_size,
            "images_first": self.images_first, "text_tokenizer": text[:12], **self.tokenizers,
        }  # fmt: skip

    def notices(self, step: int, metrics: dict[str, float]) -> list[str]:
        return []  # losses differ from task to task, so their course says little

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return matrix_optimizers(self.model.named_parameters(), self.lr, plain=("embed", "head", "place"))

    def batch(self, step: int, rank: int, world: int, progress: float) -> Batch:
        """Sequences of one kind, a pure function of (seed, step, rank) and of whether images still come first."""
        rng = random.Random(f"{self.seed}/{step}/{rank}")
        # all processes draw the same kind of sequence, so that none waits for a longer one
        kind = random.Random(f"{self.seed}/{step}").random()
        image_share = IMAGE_SHARE if self.images_first and progress < IMAGES_FIRST else 1 - IMAGE_SHARE
        if kind < image_share:
            mix = IMAGES
        else:
            mix = random.Random(f"{self.seed}/{step}/mix").choices(self.videos, [m.weight for m in self.videos])[0]
        return self.sequences(mix, self.images if mix is IMAGES else self.clips, rng)

    def sequences(self, mix: Mix, tokens: TokenSet, rng: random.Random, n: int | None = None) -> Batch:
        """A batch of one kind of sequence from `n` random items of `tokens` (default: about equally many ids)."""
        task = TASKS[mix.task]
        n_context = rng.choice([1, 2, 3, 3, 4])  # 3 latent frames, one second, is what long videos go on from
        n_context = min(n_context, self.layout.latent_frames - 1)
        sequences: list[Sequence] = []
        while len(sequences) < (n or self._batch_size(sequences)):
            i = rng.randrange(len(tokens))
            words = None
            if task.input("text") is not None and rng.random() >= self.drop_text and tokens.captions[i].strip():
                words = torch.tensor(self.text.encode(tokens.captions[i]), dtype=torch.long)
            sample = TokenSample(words, *self._window(task, tokens, i, rng))
            sequences.append(build(task, sample, self.vocab, self.layout, sound=mix.sound, n_context=n_context,
                                   block_size=self.block_size))  # fmt: skip
        return collate(sequences, self.vocab.special("<pad>"), mix.name)

    def _batch_size(self, sequences: list[Sequence]) -> int:
        """How many sequences like the first have about as many ids of media as `batch_size` silent videos.

        Prompts do not count, so that it is the same for all processes.
        """
        if not sequences:
            return 1
        ids = self.layout.latent_frames * self.layout.height * self.layout.width
        length = sum(s.stop - s.start for s in sequences[0].segments if s.name != "text")
        return max(1, round(self.batch_size * min(4.0, ids / length)))

    def _window(self, task: Task, tokens: TokenSet, i: int, rng: random.Random) -> tuple[Tensor | None, ...]:
        """Video, audio and condition of item i: its beginning, or a window from anywhere where the task allows it.

        With sound, anywhere is where a latent frame and an audio column begin together.
        """
        layout, video, audio = self.layout, tokens.video[i].long(), None
        first, column = 0, 0
        if task.starts_anywhere:
            columns = [k * layout.latent_columns for k in range(1 + len(video) - layout.latent_frames)]
            first = rng.choice([k for k, c in enumerate(columns) if abs(c - round(c)) < 1e-6])
            column = round(columns[first])
        if tokens.audio is not None:
            audio = tokens.audio[i, :, column : column + layout.audio_frames].long()
        given = tokens.conditions[task.name][i].long() if task.condition is not None else None
        return video[first : first + layout.latent_frames], audio, given

    def loss(self, model: nn.Module, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Mean loss over the targets of the batch, and the nats of each id range as "TASK/RANGE"."""
        device = next(self.model.parameters()).device
        ids, positions = batch.ids.to(device), batch.positions.to(device)
        n = self.block_size
        following = torch.cat([positions[:, n:], positions[:, -1:].expand(-1, n, -1)], dim=1)
        mask = None if bool(batch.mask.all()) else batch.mask.to(device)
        out = model(ids, positions, following, batch.prefix_len.to(device), mask, labels=batch.labels.to(device))
        return out.total, {f"{batch.task}/{name}": nats for name, nats in out.per_range.items()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, n: int) -> dict[str, float]:
        """Mean nats per id for each kind of sequence, on min(n, 32) of them from held-out clips; in bfloat16."""
        n, rng = min(n, 32), random.Random(0)
        scores = {"n": float(n)}
        for mix in (IMAGES, *self.videos):
            batch = self.sequences(mix, self.held_out, rng, n)
            with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
                metrics = self.loss(model, batch, 1.0)[1]
            scores |= {key: float(value) for key, value in metrics.items()}
        return scores

    def sample(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write the held-out losses; pictures need the tokenizers and come from `avpoet-train evaluate --grid`."""
        lines = [f"{key}\t{value:.4f}" for key, value in self.evaluate(model, N_SAMPLED).items()]
        (folder / f"{step:07d}.tsv").write_text("\n".join(lines) + "\n")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as a folder that `LM.from_pretrained` opens, whole or not at all.

        The folder above becomes that of a whole model; one of the same sizes keeps its config, and with it how it is
        sampled.
        """
        assert isinstance(model, LM)
        save_model(model, folder, max_shard_size="1TB")
        for path in (*folder.glob("model-*-of-*.safetensors"), *folder.glob("*.index.json")):  # of an older version
            path.unlink()
        if self.whole is not None and not _is_config_of(folder.parent, self.whole):
            self.whole.save(folder.parent)


def _is_config_of(folder: Path, config: PoetConfig) -> bool:
    """Whether the config of a folder is there and has the layout and size of `config`."""
    try:
        found = read_config(folder)
    except InputError:
        return False
    return (found.layout, found.size) == (config.layout, config.size)
