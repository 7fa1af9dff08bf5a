"""The transformer is at home where others are: in transformers, on the hub, under peft."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoModel

from lm import LM, Engine, LMConfig, Plan, Prefix

PROJECTIONS = ["qkv", "out", "gate_up", "down"]
PREFIX_LEN = torch.tensor([5, 2, 9])

# late versions 5 of transformers call it activation checkpointing; all of them, and peft, know the old name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def hidden(model, example):
    with torch.no_grad():
        return model(*example.rows(slice(None)), PREFIX_LEN)


def close(a, b, tolerance=1e-5):
    worst = (a - b).abs().max().item()
    assert worst < tolerance, f"largest difference {worst:.2e}"


def test_auto_classes_open_a_saved_model(model, example, tmp_path):
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "avpoet_lm"
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LMConfig)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is LM and torch.equal(hidden(again, example), hidden(model, example))


def test_push_to_hub_sends_what_from_pretrained_opens(model, example, tmp_path, monkeypatch):
    sent = {}

    def create_repo(self, repo_id, **kwargs):
        return type("Repo", (), {"repo_id": repo_id})

    def create_commit(self, repo_id, operations, **kwargs):
        for add in operations:
            assert isinstance(add, CommitOperationAdd)
            with add.as_file() as file:
                sent[add.path_in_repo] = file.read()
        return repo_id

    def no_card(*args, **kwargs):
        raise EntryNotFoundError("no card yet")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    assert model.push_to_hub("someone/avpoet-lm") == "someone/avpoet-lm"
    assert {"config.json", "model.safetensors"} <= sent.keys() and not [f for f in sent if f.endswith((".bin", ".pt"))]
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(hidden(LM.from_pretrained(tmp_path), example), hidden(model, example))


def test_gradient_checkpointing_is_one_call_and_changes_no_gradient(model, example):
    model.train()
    passes = []
    model.blocks[1].mlp.register_forward_pre_hook(lambda *_: passes.append(1))

    def gradients():
        model.zero_grad()
        passes.clear()
        model(*example.rows(slice(None)), PREFIX_LEN, labels=example.ids).total.backward()
        return len(passes), [p.grad.clone() for p in model.parameters()]

    once, plain = gradients()
    model.gradient_checkpointing_enable()
    twice, recomputed = gradients()
    model.gradient_checkpointing_disable()
    assert (once, twice, gradients()[0]) == (1, 2, 1)
    for a, b in zip(plain, recomputed, strict=True):
        close(a, b)


def test_cast_to_bfloat16_runs_is_saved_and_comes_back(model, example, tmp_path):
    exact = hidden(model, example)
    half = hidden(model.to(torch.bfloat16), example)
    assert half.dtype == torch.bfloat16 and (half - exact).abs().mean() < 0.1
    model.save_pretrained(tmp_path)
    again = LM.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(hidden(again, example), half)


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed; it is in the extra `test`")


@pytest.fixture
def tune(peft, example):
    """Puts adapters on a model and trains them on the example; gives the tuned model and its losses."""

    def tune(model, n_steps=30):
        torch.manual_seed(2)
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules=PROJECTIONS))
        optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(n_steps):
            loss = tuned(*example.rows(slice(None)), PREFIX_LEN, labels=example.ids).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return tuned.eval(), losses

    return tune


@pytest.mark.parametrize("recompute", [False, True])
def test_lora_trains_adapters_only_and_the_loss_falls(model, tune, recompute):
    before = {name: p.clone() for name, p in model.named_parameters()}
    if recompute:
        model.gradient_checkpointing_enable()
    tuned, losses = tune(model)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    wanted = {f"blocks.{i}.{part}" for i in range(2)
              for part in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")}  # fmt: skip
    assert {name.removeprefix("base_model.model.").split(".lora_")[0] for name in trained} == wanted
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora_" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], p) for name, p in before.items())
    assert all(p.abs().max() > 0 for name, p in trained.items() if ".lora_B." in name)  # they start at zero
    assert losses[-1] < 0.8 * losses[0], losses


def test_merged_adapters_give_the_same(model, example, tune):
    plain = hidden(model, example)
    tuned, _ = tune(model)
    expected = hidden(tuned, example)
    merged = tuned.merge_and_unload()
    assert type(merged) is LM and not [name for name, _ in merged.named_parameters() if "lora_" in name]
    close(hidden(merged, example), expected, 1e-4)
    assert (expected - plain).abs().max() > 0.1


def test_saved_adapters_load_again(model, example, tune, peft, tmp_path):
    model.save_pretrained(tmp_path / "base")
    tuned, _ = tune(model)
    tuned.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters/model.safetensors").exists()  # adapters alone
    again = peft.PeftModel.from_pretrained(LM.from_pretrained(tmp_path / "base"), tmp_path / "adapters")
    assert torch.equal(hidden(again.eval(), example), hidden(tuned, example))


def test_the_engine_wants_adapters_merged(model, example, tune, vocabulary):
    tuned, _ = tune(model, n_steps=3)
    for unmerged in (tuned, model):  # peft puts its layers into the model that it is given
        with pytest.raises(ValueError, match=r"merge_and_unload") as refused:
            Engine(unmerged)
        assert "\n" not in str(refused.value)
    visual = vocabulary["visual"]
    start, stop = torch.full((6,), visual.start), torch.full((6,), visual.stop)
    plan, prefix = (
        Plan(start, stop, example.positions[0, 5:11]),
        Prefix([example.ids[0, :5]], [example.positions[0, :5]]),
    )
    ids = Engine(tuned.merge_and_unload(), dtype=torch.float32).generate(prefix, plan, seeds=[0])
    assert ids.shape == (1, 6) and ((ids >= visual.start) & (ids < visual.stop)).all()
