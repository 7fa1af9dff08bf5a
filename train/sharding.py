"""Sharded training (FSDP2): of n processes each holds 1/n of weights, gradients, optimizer states and averaged weights.

It is asked for as everywhere: `accelerate launch --use_fsdp --fsdp_version 2`, that is through the environment that the
launcher leaves. What is done then is torch's own `fully_shard`, because `Accelerator.prepare` shards the embedding as a
unit of its own, whose weight is not whole where the loss of the transformer scores with it.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tasks.errors import InputError


@dataclass(frozen=True)
class Sharding:
    """What the launcher asked for."""

    reshard_after_forward: bool = True  # a block gives its weights back after the forward pass, too
    activation_checkpointing: bool = False


def requested_sharding(model: nn.Module) -> Sharding | None:
    """What Accelerate's environment asks for, None where that is not FSDP.

    Raises InputError where `model` cannot be sharded, or not in the way that is asked for.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env
    from torch.distributed.fsdp import CPUOffloadPolicy

    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    if not units(model):
        raise InputError(f"{type(model).__name__} cannot be trained with FSDP; launch without --use_fsdp")
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InputError(f"FSDP version {version} is not supported; launch with --fsdp_version 2")
    plugin = FullyShardedDataParallelPlugin()
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError("FSDP with offloaded weights is not supported; launch with --fsdp_offload_params false")
    return Sharding(bool(plugin.reshard_after_forward), plugin.activation_checkpointing)


def units(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together: those that `_no_split_modules` names, as transformers does."""
    names = getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def shard(
    model: nn.Module, sharding: Sharding, device: torch.device, dtype: torch.dtype, *, compile: bool = False
) -> nn.Module:
    """Shard `model` in place over all processes and return a copy of it, sharded alike, for averaged weights.

    The weights are those of the first process. Blocks compute with weights cast to `dtype`, the rest of the model with
    float32; gradients are averaged in float32. With `compile` the blocks are compiled, each by itself. The model must
    be called as a module, the copy cannot be called.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    average = _copy_with(model, {id(p): torch.empty_like(p, device="meta") for p in model.parameters()})
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # autocast would keep a cast copy of every weight until its backward pass, whole; FSDP casts what it frees
    cast = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    if sharding.activation_checkpointing:
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # transformers' newer name first
        next(getattr(model, name) for name in names if hasattr(model, name))()
    for block in units(model):
        _broadcast(block, device)
        if compile:  # not the call, which gathers the weights
            block.forward = torch.compile(block.forward, dynamic=True)
        fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward, mp_policy=cast)
    _broadcast(model, device)
    fully_shard(model, mesh=mesh)
    average.load_state_dict({name: t.detach().clone() for name, t in model.state_dict().items()}, assign=True)
    return average.requires_grad_(False).eval()


def unsharded(model: nn.Module, device: torch.device, *, keep: bool) -> nn.Module | None:
    """Whole copy of what `shard` returned, or None where it is not to be kept; all processes must take part."""
    tensors: dict[int, Tensor] = {}
    for p in model.parameters():
        tensor = whole(p)
        if keep:
            tensors[id(p)] = tensor.to(device)
    return _copy_with(model, tensors).to(device) if keep else None


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, detached; all processes must take part."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, detached and sharing its memory: all of it if it is not sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, other: Tensor | None) -> Tensor:
    """`tensor`, which every process holds whole, sharded as `other` is if that is sharded and of the same shape."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None).clone()


def _copy_with(model: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """Copy of a model with other parameters: `tensors` by the id of the parameter whose place they take."""
    return copy.deepcopy(model, {old: nn.Parameter(new, requires_grad=False) for old, new in tensors.items()})


def _broadcast(module: nn.Module, device: torch.device) -> None:
    """Move what is not sharded yet to the device, and give all processes the weights of the first."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
            dist.broadcast(tensor.data, src=0)
