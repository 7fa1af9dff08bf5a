"""Several sources as one: drawn by weight, each sample pure, in the order asked for."""

import logging

import pytest
import torch

from tokenizers_av.clip import Clip, MediaError
from train.data import MediaBatch, MediaSpec, Mixture, Source, open_source
from train.data.folder import FolderSource
from train.data.playground import Playground

SPEC = MediaSpec(n_frames=2, size=16)


class Numbers:
    """A source whose sample i is all i / 1000, signed so that sources can be told apart."""

    len = None

    def __init__(self, sign, scenes=False):
        self.sign, self.scenes, self.calls = sign, scenes, []

    def batch(self, indices, spec, *, video=True, audio=True):
        self.calls.append(list(indices))
        values = self.sign * torch.tensor(indices) / 1000
        return MediaBatch(
            video=values.view(-1, 1, 1, 1, 1).expand(-1, 3, spec.n_frames, spec.size, spec.size) if video else None,
            audio=values.view(-1, 1).expand(-1, spec.n_samples) if audio else None,
            captions=[f"{self.sign * index}" for index in indices],
            scenes=list(indices) if self.scenes else None,
        )


class Silent(Numbers):
    def batch(self, indices, spec, *, video=True, audio=True):
        raise MediaError("music: none of its 3 train files has a readable picture")


@pytest.mark.parametrize("weights", [None, [1, 3], [0.5, 0.0], [2, 5, 1]])
def test_shares_follow_the_weights(weights):
    n = 2 if weights is None else len(weights)
    mixture = Mixture([Numbers(1)] * n, weights, seed=1)
    expected = [1 / n] * n if weights is None else [weight / sum(weights) for weight in weights]
    assert mixture.weights == pytest.approx(expected)
    counts = [0] * n
    for index in range(3000):
        counts[mixture.choose(index)] += 1
    assert all(count == 0 for count, share in zip(counts, expected) if share == 0)
    chi2 = sum((count - 3000 * share) ** 2 / (3000 * share) for count, share in zip(counts, expected) if share)
    assert chi2 < 10, (counts, expected)  # two degrees of freedom: above 9.2 once in a hundred


def test_order_is_kept_and_each_source_is_asked_once():
    sources = [Numbers(1), Numbers(-1), Numbers(-1)]
    mixture = Mixture(sources)
    indices = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    batch = mixture.batch(indices, SPEC)
    signs = torch.tensor([sources[mixture.choose(index)].sign for index in indices])
    expected = signs * torch.tensor(indices) / 1000
    assert batch.video.shape == (40, 3, 2, 16, 16) and torch.equal(batch.video[:, 0, 0, 0, 0], expected)
    assert batch.audio.shape == (40, SPEC.n_samples) and torch.equal(batch.audio[:, 0], expected)
    assert batch.captions == [str(int(sign) * index) for sign, index in zip(signs, indices)]
    assert [len(source.calls) for source in sources] == [1, 1, 1] and batch.scenes == [None] * 40
    assert mixture.batch([0], SPEC, audio=False).audio is None and mixture.batch([0], SPEC, video=False).video is None


def test_a_sample_depends_on_seed_split_and_index_alone():
    def chosen(**options):
        mixture = Mixture([Numbers(1), Numbers(-1)], **options)
        return [mixture.choose(index) for index in range(64)]

    assert chosen() == chosen() != chosen(seed=1) != chosen(split="test") != chosen()
    mixture = Mixture([Numbers(1), Numbers(-1)])
    assert torch.equal(mixture.batch([5, 9, 7], SPEC).video[[2]], mixture.batch([7], SPEC).video)


def test_scenes_are_known_where_their_source_knows_them():
    indices = list(range(12))
    both = Mixture([Numbers(1, scenes=True), Numbers(-1, scenes=True)])
    assert both.batch(indices, SPEC).scenes == indices
    mixture = Mixture([Numbers(1), Numbers(-1, scenes=True)])
    known = [index if mixture.choose(index) == 1 else None for index in indices]
    assert mixture.batch(indices, SPEC).scenes == known and 0 < known.count(None) < 12


def test_a_source_that_lacks_what_is_asked_for_is_left_out(caplog):
    indices = list(range(30))
    with caplog.at_level(logging.WARNING):
        mixture = Mixture([Numbers(1), Silent(0), Numbers(-1)])
        before = [mixture.choose(index) for index in indices]
        first, again = mixture.batch(indices, SPEC), mixture.batch(indices, SPEC)
    assert len(caplog.records) == 1 and "left out of the mixture: music" in caplog.records[0].getMessage()
    assert torch.equal(first.video, again.video), "what was known before must not change a sample"
    kept = [(k, mixture.choose(index)) for k, index in zip(before, indices) if k != 1]
    assert kept and all(k == now for k, now in kept) and 1 in before
    with pytest.raises(MediaError, match="none of its 3"):
        Mixture([Numbers(1), Silent(0)], [0, 1]).batch([0], SPEC)


def test_open_source_mixes_folders_files_and_the_playground(tmp_path):
    for name, level in (("a/dark.png", 0), ("b.png", 255), ("a/bad.jpg", None)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if level is None:
            path.write_text("no picture")
        else:
            Clip(torch.full((1, 16, 16, 3), level, dtype=torch.uint8), 8.0).save(path)
    names = ["playground", str(tmp_path / "a"), tmp_path / "b.png"]
    mixture = open_source(names, split="test", seed=2, weights=[2, 1, 1])
    assert isinstance(mixture, Mixture) and isinstance(mixture, Source)
    assert [type(source) for source in mixture.sources] == [Playground, FolderSource, FolderSource]
    assert all((source.split, source.seed) == ("test", 2) for source in mixture.sources)
    batch = mixture.batch(range(16), SPEC)
    assert batch.video.shape == (16, 3, 2, 16, 16) and batch.audio.shape == (16, SPEC.n_samples)
    for i in range(16):
        k = mixture.choose(i)
        if k == 0:
            assert batch.captions[i] == mixture.sources[0].scene(i).caption
        else:
            assert (batch.video[i] == (-1 if k == 1 else 1)).all() and batch.captions[i] == ""
    assert list(mixture.skipped) == [str(tmp_path / "a" / "bad.jpg")]
    assert isinstance(open_source(["playground"]), Playground), "one is no mixture"
    assert [source.augment for source in open_source(names[1:], augment=True).sources] == [True, True]


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        ([], None, "no sources"),
        (["playground", "playground"], [1], "1 for 2 sources"),
        ("playground", [1, 2], "2 for 1 sources"),
        (["playground", "playground"], [1, -1], "at least 0"),
        (["playground", "playground"], [0, 0], "one of them above 0"),
        (["playground", "playground"], [1, float("nan")], "at least 0"),
        (["playground", "playground"], [1, float("inf")], "at least 0"),
        (["playground", "no/such/place"], None, "no such folder or file"),
    ],
)
def test_bad_mixtures_are_named(data, weights, message):
    with pytest.raises(ValueError, match=message):
        open_source(data, weights=weights)


def test_bad_arguments_of_a_mixture():
    with pytest.raises(ValueError, match="split='dev'"):
        Mixture([Numbers(1)], split="dev")
    with pytest.raises(ValueError, match="indices is empty"):
        Mixture([Numbers(1)]).batch([], SPEC)
