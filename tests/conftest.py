"""Fixtures for all tests: a whole untrained model of debug size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network


@pytest.fixture(scope="session")
def debug_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained, seeded model: 16x16 pixels, 9 frames at 8 a second, 3x2x2 video ids, 2 x 56 audio ids."""
    import torch

    from lm import LM, Vocabulary, lm_config
    from tasks import SPECIAL_TOKENS, AVPoet, Layout, PoetConfig
    from tokenizers_av.audio import AudioTokenizer, audio_tokenizer_config
    from tokenizers_av.text import TextTokenizer
    from tokenizers_av.video import VideoTokenizer, video_tokenizer_config

    captions = ["a red ball bounces on a wooden floor", "a blue cube slides to the left", "two green discs collide"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        video = VideoTokenizer(video_tokenizer_config("debug"))
        audio = AudioTokenizer(audio_tokenizer_config("debug", n_codebooks=2))
        text = TextTokenizer.train(captions * 4, vocab_size=300)
        vocab = Vocabulary.build(
            SPECIAL_TOKENS, video.codebook_size, [audio.codebook_size] * audio.n_codebooks, text.vocab_size
        )
        layout = Layout(
            latent_frames=3, height=2, width=2, audio_frames=56, n_codebooks=audio.n_codebooks,
            audio_rate=audio.frame_rate,
        )  # fmt: skip
        lm = LM(lm_config("debug", vocab))
        with torch.no_grad():
            for p in lm.parameters():
                if p.ndim > 1:
                    p.mul_(4)  # so large that what comes out depends on what goes in
        poet = AVPoet(video, audio, text, lm, PoetConfig(layout, (16, 16)))
    folder = tmp_path_factory.mktemp("model")
    poet.save_pretrained(folder)
    return folder
