"""What goes wrong in a training, noticed while it runs and said in plain words.

Each kind of trouble is said once, and again only after it had cleared. The loss is compared in windows of logged
values by their medians, so that a few batches that are harder than others mean nothing.
"""
# Shapes: B batch, T frames, H W height and width in pixels

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median, quantiles

import torch
from torch import Tensor

NOT_FINITE = "lower the learning rate, and look for frames or labels that are not numbers"
FIRST_BATCHES = 8  # whose range is looked at
ID_BATCHES = 100  # logged batches whose ids are counted
ID_TABLE = 1 << 20  # ids above are counted modulo this: seen together they are still hundreds of thousands
SHORT = 10  # logged values in one median
PATIENCE = 200  # steps the loss may stay above its best
FLAT = 300  # steps after which the loss must have fallen
GROWTH = 10.0  # times the gradient may grow
FAR_LEVEL = 12.0  # dB
GOOD_PSNR = 18.0  # dB; no random start is as good


class Watch:
    """Looks at the first batches and at the metrics of logged steps; metrics that a job does not log are passed over.

    Known are loss, grad_norm, entropy (nats per bit, -ln 2 is best), codes (distinct ids of a batch), soft (share of
    samples that bypass the quantizer), level (dB of the output above the target's), d_real, d_fake and g_adversarial.
    """

    def __init__(
        self,
        codebook_size: int | None = None,
        collapsed: str = "raise entropy_weight or lower the learning rate",
        trained: bool = False,
    ) -> None:
        """`collapsed` says what to do when codes collapse; a model that is `trained` already may stand still."""
        self.codebook_size, self.collapsed, self.trained = codebook_size, collapsed, trained
        self._said: set[str] = set()
        self._lows: list[float] = []  # of the first batches
        self._highs: list[float] = []
        self._ids: deque[Tensor] = deque()  # (n,) each, of the last ID_BATCHES
        self._counts: Tensor | None = None  # (codes,) how often each is in them
        self._codes: deque[float] = deque(maxlen=ID_BATCHES)
        self._recent: dict[str, deque[float]] = {}  # the last SHORT values of a metric
        self._entropies: list[float] = []  # medians
        self._logged: set[str] = set()  # names of metrics
        self._start = (0, math.inf)  # step and loss
        self._best = (0, math.inf)  # while the loss is made of the same terms
        self._above_since: int | None = None  # step
        self._n_same = 0
        self._falls = False
        self._calmest = math.inf  # least median of gradient norms
        self._stage = (False, False)  # whether nothing and everything is quantized

    def batch(self, video: Tensor) -> list[str]:
        """What is wrong with the range of one of the first batches, video (B, 3, T, H, W), values in [-1, 1] expected.

        Raises ValueError where the values cannot be meant so.
        """
        if len(self._lows) == FIRST_BATCHES:
            return []
        if not video.is_floating_point():
            raise ValueError(f"frames are {video.dtype}, expected floating point in [-1, 1]: frames / 127.5 - 1")
        low, high = (float(v) for v in video.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("frames hold values that are not numbers, expected [-1, 1]; look for a division by zero")
        if low < -1.01 or high > 1.01:
            cure = ": they look like 0...255; feed frames / 127.5 - 1" if low >= 0 and high > 2 else ""
            raise ValueError(f"frames span [{low:.4g}, {high:.4g}], expected [-1, 1]{cure}")
        self._lows.append(low)
        self._highs.append(high)
        low, high = min(self._lows), max(self._highs)
        return self._say(
            "range",
            len(self._lows) == FIRST_BATCHES and low >= 0 and high > low,
            f"no value of the first {FIRST_BATCHES} batches is below {low:.2g}: if the frames are 0...1, feed "
            "2 * frames - 1",
        )

    def step(self, step: int, metrics: Mapping[str, float], ids: Tensor | None = None) -> list[str]:
        """What is newly wrong at a logged step; `ids` are those of its batch, any shape, int64."""
        new: list[str] = []
        soft = metrics.get("soft", 0.0)
        if soft <= 0.5:
            new += self._watch_codes(metrics.get("codes"), ids)
            if "entropy" in metrics:
                new += self._watch_entropy(metrics["entropy"])
        if not self._logged:  # a training that goes on, or starts from a good model, may stand still
            self._falls = self.trained or step > FLAT or metrics.get("psnr", 0.0) > GOOD_PSNR
        if "loss" in metrics:
            new += self._watch_loss(step, metrics["loss"], soft == 0 and metrics.keys() <= self._logged)
        stage = soft == 1, soft == 0
        if stage != self._stage or not metrics.keys() <= self._logged:
            self._stage, self._calmest = stage, math.inf  # quantization sets in, or the loss is made of other terms
            self._recent.pop("grad_norm", None)
        self._logged |= metrics.keys()
        if "grad_norm" in metrics:
            last = self._last("grad_norm", metrics["grad_norm"])
            new += self._say("gradient", len(last) == SHORT and max(last) < 1e-7,
                             "the gradient is zero: the loss does not reach the weights; look for a detach, a frozen "
                             "model or a dead activation")  # fmt: skip
            new += self._watch_growth(last)
        if "level" in metrics:
            new += self._watch_level(metrics["level"])
        if {"d_real", "d_fake", "g_adversarial"} <= metrics.keys():
            new += self._watch_critic(metrics)
        return new

    def _say(self, kind: str, wrong: bool, words: str, right: bool | None = None) -> list[str]:
        """[words] where `kind` is newly wrong; it has cleared when it is `right` (default: not wrong)."""
        if wrong and kind not in self._said:
            self._said.add(kind)
            return [words]
        if not wrong if right is None else right:
            self._said.discard(kind)
        return []

    def _last(self, name: str, value: float) -> deque[float]:
        """The last values of a metric, with this one."""
        last = self._recent.setdefault(name, deque(maxlen=SHORT))
        last.append(value)
        return last

    def _watch_codes(self, in_batch: float | None, ids: Tensor | None) -> list[str]:
        """Collapse: fewer codes than half of the bits could name, of those that so many ids could have shown."""
        if self.codebook_size is None:
            return []
        if ids is not None:
            n_batches, n_ids, n_seen, bits = self._count(ids)
            floor = math.sqrt(min(self.codebook_size, n_ids))
            where = f"in the last {n_batches} batches"
        elif in_batch is not None:
            self._codes.append(in_batch)
            n_batches, n_seen, bits = len(self._codes), int(max(self._codes)), math.inf
            floor = min(math.sqrt(self.codebook_size), 8)  # how many ids a batch has is not known
            where = f"in each of the last {n_batches} batches"
        else:
            return []
        cure = self.collapsed
        known = n_batches >= SHORT and self.codebook_size > 1
        total = math.log2(self.codebook_size)
        return self._say(
            "codes", known and n_seen < floor,
            f"only {n_seen:,} of {self.codebook_size:,} codes {where}: the codes have collapsed; {cure}",
            right=n_seen > 1.5 * floor,
        ) + self._say(
            "code entropy", known and n_seen >= floor and bits < 0.1 * total,
            f"the ids {where} carry {bits:.2g} of {total:.3g} bits: nearly all are the same code; {cure}",
            right=bits > 0.15 * total,
        )  # fmt: skip

    def _count(self, ids: Tensor) -> tuple[int, int, int, float]:
        """Batches, ids, distinct ids and their entropy in bits, over the last batches and this one."""
        assert self.codebook_size is not None
        size = min(self.codebook_size, ID_TABLE)
        if self._counts is None:
            self._counts = torch.zeros(size, dtype=torch.int64)
        ids = ids.detach().flatten().cpu() % size
        self._ids.append(ids)
        self._counts += torch.bincount(ids, minlength=size)
        if len(self._ids) > ID_BATCHES:
            self._counts -= torch.bincount(self._ids.popleft(), minlength=size)
        n = int(self._counts.sum())
        p = self._counts[self._counts > 0] / n
        return len(self._ids), n, len(p), float(-(p * p.log2()).sum())

    def _watch_entropy(self, entropy: float) -> list[str]:
        last = self._last("entropy", entropy)
        if len(last) < SHORT or not any(last):  # FSQ has none: exactly zero
            return []
        now = median(last)
        self._entropies.append(now)
        first, n = self._entropies[0], len(self._entropies)
        slow = n > 5 * SHORT and now > -0.25 and now > first - 0.02
        return self._say(
            "entropy", (n > SHORT and now > -0.1) or slow,
            f"the entropy loss is {now:.2f} nats per bit{' and does not fall' if slow else ''}, {-math.log(2):.2f} is "
            "best: the bits are undecided, or the same everywhere; raise entropy_weight",
            right=now < min(-0.15, first - 0.03),
        )  # fmt: skip

    def _watch_loss(self, step: int, loss: float, same: bool) -> list[str]:
        """`same`: whether the loss is made of the same terms as before."""
        last = self._last("loss", loss)
        now, noise = median(last), _spread(last)
        if len(last) <= 3:
            self._start = (self._start[0] if len(last) > 1 else step, now)
        first, start = self._start
        self._falls = self._falls or (len(last) == SHORT and now < start - max(noise, 0.01 * abs(start)))
        new = self._say(
            "flat", not self._falls and step - first >= FLAT and len(last) == SHORT,
            f"the loss has not fallen since step {first:,} ({start:.3g}, now {now:.3g}): the learning rate may be too "
            "low or far too high, or no gradient reaches the weights",
        )  # fmt: skip
        if not same:
            self._best, self._above_since, self._n_same = (step, math.inf), None, 0
            return new
        self._n_same += 1
        if self._n_same < SHORT:
            return new
        if now < self._best[1]:
            self._best = step, now
        best_step, best = self._best
        gap = now - best
        if gap <= max(0.3 * (start - best), 2 * noise, 0.01 * abs(best)):
            self._above_since = None
        elif self._above_since is None:
            self._above_since = step
        n = 0 if self._above_since is None else step - self._above_since
        above = f"{gap / best:.0%}" if best > 0 else f"{gap:.3g}"
        return new + self._say(
            "high", n >= PATIENCE,
            f"the loss is {above} above its best of step {best_step:,} for {n:,} steps: the learning rate may be too "
            "high",
            right=not n,
        )  # fmt: skip

    def _watch_growth(self, last: deque[float]) -> list[str]:
        """`last` gradient norms: many times what they were in their calmest stretch?"""
        if len(last) < SHORT:
            return []
        now = median(last)
        self._calmest = min(self._calmest, now)
        times = now / max(self._calmest, 1e-12)
        return self._say(
            "growth", times > GROWTH,
            f"the gradient is {times:.0f} times what it was: something grows without end; lower the learning rate",
            right=times < GROWTH / 2,
        )  # fmt: skip

    def _watch_level(self, level: float) -> list[str]:
        last = self._last("level", level)
        off = abs(median(last)) if len(last) == SHORT else 0.0
        how = "quieter" if median(last) < 0 else "louder"
        return self._say(
            "level", off > FAR_LEVEL,
            f"what is decoded is {off:.0f} dB {how} than it should be: lower the learning rate, and look at what the "
            "data sounds like",
            right=off < FAR_LEVEL / 2,
        )  # fmt: skip

    def _watch_critic(self, metrics: Mapping[str, float]) -> list[str]:
        real, fake, loss = (self._last(name, metrics[name]) for name in ("d_real", "d_fake", "g_adversarial"))
        gap = median(real) - median(fake)
        return self._say(
            "critic", len(loss) == SHORT and gap > 8 and median(loss) > 4,
            f"the discriminator has won: {median(real):.1f} for real and {median(fake):.1f} for decoded clips, "
            f"generator loss {median(loss):.1f}; lower discriminator_lr or adversarial_weight",
            right=gap < 6,
        )  # fmt: skip


def _spread(values: Sequence[float]) -> float:
    """Half of the distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4)
    return (high - low) / 2
