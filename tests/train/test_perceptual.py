"""The perceptual loss, with tiny random networks, and where its network comes from."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tasks.errors import InputError
from train.perceptual import IMAGENET_MEAN, IMAGENET_STD, PerceptualLoss, open_perceptual


def resnet():
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    net = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))
    return net.eval()


def vit():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    return ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                              image_size=64, patch_size=16), add_pooling_layer=False).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet")
    resnet().save_pretrained(path)
    return path


@pytest.fixture
def video():
    torch.manual_seed(0)
    return torch.rand(2, 3, 3, 32, 40) * 2 - 1


def blurred(video, n):
    for _ in range(n):
        video = F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    return video


@pytest.mark.parametrize("make", [resnet, vit])
def test_distance_is_zero_for_equal_videos_and_grows_with_blur(make, video):
    loss = PerceptualLoss(make(), n_frames=None)
    assert float(loss(video, video)) == 0
    distances = [float(loss(blurred(video, n), video)) for n in (1, 3, 9)]
    assert 0 < distances[0] < distances[1] < distances[2] < 4


@pytest.mark.parametrize("make, dim", [(resnet, 1), (vit, 2)])
def test_distance_against_its_formula(make, dim, video):
    net = make()
    options = {"interpolate_pos_encoding": True} if make is vit else {}
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    other = blurred(video, 1)

    def layers(v):
        frames = v.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            return net(((frames + 1) / 2 - mean) / std, output_hidden_states=True, **options).hidden_states

    pairs = list(zip(layers(video), layers(other), strict=True))
    assert len(pairs) == 3
    expected = [2 - 2 * torch.cosine_similarity(a, b, dim=dim).mean() for a, b in pairs]
    torch.testing.assert_close(
        PerceptualLoss(net, n_frames=None)(other, video), torch.stack(expected).mean(), rtol=1e-3, atol=1e-5
    )


def test_gradient_reaches_the_output_and_nothing_else(video):
    loss = PerceptualLoss(resnet()).train()
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    output, target = blurred(video, 1).requires_grad_(), video.requires_grad_()
    loss(output, target).backward()
    assert output.grad.isfinite().all() and (output.grad.abs().amax((1, 3, 4)) > 0).all() and target.grad is None
    assert not any(p.requires_grad for p in loss.parameters()) and not any(m.training for m in loss.modules())
    assert all(torch.equal(v, state[k]) for k, v in loss.state_dict().items())  # batch norms' statistics too


def test_distance_and_gradient_are_finite_where_the_network_sees_nothing(video):
    class Dark(torch.nn.Module):
        def forward(self, pixel_values, output_hidden_states, return_dict):
            return SimpleNamespace(hidden_states=(pixel_values - pixel_values.detach(),))

    output = video.requires_grad_()
    loss = PerceptualLoss(Dark())(output, -video)
    loss.backward()
    assert float(loss.detach()) == 0 and output.grad.isfinite().all()


def test_a_seeded_choice_of_frames_is_the_same_for_both_videos(video):
    loss = PerceptualLoss(resnet(), n_frames=1)
    output = video.clone()
    output[:, :, 1] = blurred(video, 3)[:, :, 1]  # one frame of three differs
    values = []
    for seed in (0, 0, *range(1, 12)):
        torch.manual_seed(seed)
        values.append(float(loss(output, video)))
        assert float(loss(video, video)) == 0
    assert values[0] == values[1] and min(values) == 0 < max(values)
    everything = PerceptualLoss(resnet(), n_frames=None)(output, video)
    assert float(everything) == pytest.approx(float(PerceptualLoss(resnet(), n_frames=3)(output, video)))
    output = output.requires_grad_()
    loss(output, video).backward()
    assert (output.grad.abs().amax((1, 3, 4)) > 0).sum(1).max() <= 1


def test_images_small_frames_and_bfloat16(video):
    loss = PerceptualLoss(resnet())
    image = video[:, :, :1, :8, :12]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(-image, image)
    assert value.dtype == torch.float32 and value.shape == () and float(value) > 0
    assert loss.features(image[:, :, 0])[0].shape[2:] == (8, 12)  # a quarter of 32 x 48, to which 8 x 12 is enlarged
    for a, b in ((video, video[:1]), (video[:, 0], video[:, 0]), (video[:, :1], video[:, :1])):
        with pytest.raises(ValueError, match="both need"):
            loss(a, b)
    with pytest.raises(ValueError, match="n_frames=0"):
        PerceptualLoss(resnet(), n_frames=0)


def test_a_saved_network_gives_the_same_loss_and_no_messages(folder, video, capfd):
    opened = open_perceptual(folder, n_frames=None)
    assert capfd.readouterr() == ("", "")
    other = blurred(video, 1)
    torch.testing.assert_close(opened(other, video), PerceptualLoss(resnet(), n_frames=None)(other, video))


def test_normalisation_is_the_folders_own(folder, tmp_path):
    assert open_perceptual(str(folder)).mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    resnet().save_pretrained(tmp_path)
    config = tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    loss = open_perceptual(tmp_path)
    assert loss.mean.flatten().tolist() == [0.5] * 3 and loss.std.flatten().tolist() == [0.25] * 3
    config.write_text(json.dumps({"do_normalize": False}))
    assert open_perceptual(tmp_path).std.flatten().tolist() == [1.0] * 3
    for damaged in ("{", "[]", '{"image_std": [0, 1, 1]}'):
        config.write_text(damaged)
        with pytest.raises(InputError, match="not a readable preprocessor config"):
            open_perceptual(tmp_path)


def test_a_name_that_is_not_here_gives_none_and_one_line(capsys, monkeypatch, tmp_path):
    assert open_perceptual(None) is None and capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path)
    assert open_perceptual("nobody/no-such-network") is None
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "hf download nobody/no-such-network" in err and "there is no perceptual loss" in err


def test_a_name_in_the_cache_is_found_and_a_half_one_is_not(folder, monkeypatch, tmp_path, capsys):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append(k) or str(where))
    where = folder
    assert open_perceptual("someone/network") is not None and asked[-1]["local_files_only"]
    where = tmp_path
    assert open_perceptual("someone/network") is None and "only in part" in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_is_an_error(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_perceptual(tmp_path / "missing")
    with pytest.raises(InputError, match=r"need a folder with config\.json"):
        open_perceptual(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no model\.safetensors \(pickled weights are not opened\)"):
        open_perceptual(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not an image network") as error:
        open_perceptual(str(tmp_path))
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_an_error(folder, tmp_path, caplog, request):
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    weights = load_file(folder / "model.safetensors")
    lost = next(key for key in weights if key.endswith("convolution.weight"))
    del weights[lost]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    logging.add_handler(caplog.handler)
    request.addfinalizer(lambda: logging.remove_handler(caplog.handler))
    level = logging.get_verbosity()
    with pytest.raises(InputError, match=f"its weights lack '{lost}'"):
        open_perceptual(tmp_path)
    assert not caplog.records and logging.get_verbosity() == level  # transformers would add a report of many lines


def test_a_language_model_and_a_network_that_masks_at_random_are_errors(tmp_path):
    from transformers import BertConfig, BertModel, ViTMAEConfig, ViTMAEModel

    ViTMAEModel(ViTMAEConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                             image_size=64)).save_pretrained(tmp_path)  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(InputError, match="sees something else every time"):
        open_perceptual(tmp_path)
    BertModel(BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                         intermediate_size=8)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(InputError, match="not an image network"):
        open_perceptual(tmp_path)
