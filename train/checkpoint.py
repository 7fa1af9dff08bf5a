"""Checkpoints without pickle: one safetensors file for every tensor, one JSON file for every number.

A checkpoint folder is written beside its final name and then renamed, so a kill leaves the old one or the new one.
Tensors that are sharded over processes are written whole, so that any number of processes can go on from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.errors import InputError
from train.sharding import local, sharded_like, whole


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or belongs to another model or setting."""


def flatten(state: Any, tensors: dict[str, Tensor] | None, name: str = "") -> Any:
    """Copy of `state` for JSON, in which each tensor is replaced by its key in `tensors`, where it is whole and on the
    CPU. With None for `tensors` they are forgotten: a process only takes part in what others gather."""
    if isinstance(state, Tensor):
        tensor = whole(state)
        if tensors is not None:
            tensors[name] = tensor.to("cpu", copy=True).contiguous()
        return {"__tensor__": name}
    if isinstance(state, dict):
        return {"__dict__": [[k, flatten(v, tensors, f"{name}.{k}")] for k, v in state.items()]}
    if isinstance(state, (list, tuple)):
        return [flatten(v, tensors, f"{name}.{i}") for i, v in enumerate(state)]
    return state


def unflatten(state: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    if isinstance(state, list):
        return [unflatten(v, tensors) for v in state]
    if isinstance(state, dict) and "__tensor__" in state:
        return tensors[state["__tensor__"]]
    if isinstance(state, dict):
        return {k: unflatten(v, tensors) for k, v in state["__dict__"]}
    return state


def save_checkpoint(
    folder: Path, models: dict[str, nn.Module], optimizers: list, progress: dict[str, Any], *, write: bool = True
) -> None:
    """Write weights, optimizer states and `progress` (numbers and strings) to `folder`, whole or not at all.

    One process writes; where something is sharded the others must call this too, with `write=False`.
    """
    tensors: dict[str, Tensor] | None = {} if write else None
    states = {
        "models": {name: flatten(model.state_dict(), tensors, name) for name, model in models.items()},
        "optimizers": [flatten(o.state_dict(), tensors, f"optimizer{i}") for i, o in enumerate(optimizers)],
        "progress": progress,
    }
    if tensors is None:
        return
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(tensors, fresh / "state.safetensors")
    (fresh / "state.json").write_text(json.dumps(states))
    for path in (fresh / "state.safetensors", fresh / "state.json", fresh):
        _to_disk(path)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _to_disk(folder.parent)  # what is new must be there before what is old is gone
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` finds a whole checkpoint in `folder`, or left beside it by a kill."""
    return folder.exists() or folder.with_name(folder.name + ".old").exists()


def load_checkpoint(folder: Path, models: dict[str, nn.Module], optimizers: list) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote, sharded where the models are, and return its `progress`.

    Raises CheckpointError.
    """
    states, tensors = _read(folder)
    if set(states["models"]) != set(models) or len(states["optimizers"]) != len(optimizers):
        raise CheckpointError(f"{folder}: the checkpoint holds other models; choose another folder")
    try:
        for name, model in models.items():
            found, own = unflatten(states["models"][name], tensors), model.state_dict()
            model.load_state_dict({k: sharded_like(v, own.get(k)) for k, v in found.items()})
        for optimizer, state in zip(optimizers, states["optimizers"], strict=True):
            optimizer.load_state_dict(_sharded_state(unflatten(state, tensors), optimizer))
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise CheckpointError(f"{folder}: the checkpoint does not fit ({first}); use the same preset") from None
    return states["progress"]


def _sharded_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state` with every tensor sharded as the parameter that it belongs to."""
    places = [place for group in state["param_groups"] for place in group["params"]]
    parameters = dict(zip(places, (p for group in optimizer.param_groups for p in group["params"])))
    split = {
        place: {k: sharded_like(v, parameters.get(place)) if isinstance(v, Tensor) else v for k, v in values.items()}
        for place, values in state["state"].items()
    }
    return {**state, "state": split}


def load_weights(folder: Path, name: str) -> dict[str, Tensor] | None:
    """The state dict of one of the models that `save_checkpoint` wrote, None where there is none of that name; raises
    CheckpointError where there is no checkpoint."""
    states, tensors = _read(folder)
    return unflatten(states["models"][name], tensors) if name in states["models"] else None


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the tensors of a checkpoint."""
    from safetensors import SafetensorError

    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():  # killed between the two renames
        with contextlib.suppress(OSError):  # another process was faster
            old.rename(folder)
    if not (folder / "state.json").is_file():
        raise CheckpointError(f"{folder}: no checkpoint to resume from")
    try:
        states = json.loads((folder / "state.json").read_text())
        if not isinstance(states, dict) or not {"models", "optimizers", "progress"} <= states.keys():
            raise ValueError("state.json lacks models, optimizers or progress")
        return states, load_file(folder / "state.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the checkpoint is damaged ({error}); start in a new folder") from None


def save_model(model: Any, folder: Path, **options: Any) -> None:
    """`model.save_pretrained(folder, **options)`, each file whole at any time; a README.md that is there stays."""
    from tasks.model_folder import quietly

    fresh = folder / "train/model.new"
    with quietly():
        model.save_pretrained(fresh, **options)
    if (folder / "README.md").exists():  # somebody may have written in it
        (fresh / "README.md").unlink(missing_ok=True)
    for path in fresh.iterdir():
        path.replace(folder / path.name)
    fresh.rmdir()


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    fresh.replace(path)


def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for floating-point tensors; the rest is copied.

    Where the model is sharded the average is sharded alike, and every process averages what it holds.
    """
    with torch.no_grad():
        states = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        for a, m in ((local(a), local(m)) for a, m in states):
            if a.dtype.is_floating_point:
                a.lerp_(m.to(a.dtype), 1 - decay)
            else:
                a.copy_(m)
