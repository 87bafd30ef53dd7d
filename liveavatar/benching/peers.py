"""Peers: libraries that offload weights from the outside, and one design of another library written anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from liveavatar.benching.ways import Peer, Setting, Way
from liveavatar.checkpoint.read import TensorSource
from liveavatar.checkpoint.slab import SlabLayout, allocate, point, vacate
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.base import place_resident

CPU = torch.device("cpu")
UNITS = ["Embed", "Block", "AdaIn", "Injector", "Head"]


class Accelerate(Peer):
    """accelerate's `cpu_offload`. Some weights of this model are used without a call of their module, for which
    accelerate has `preload_module_classes`: it brings in a unit at a time."""

    def attach(self, dit: AvatarDiT, source: TensorSource) -> None:
        import accelerate.hooks
        from accelerate import cpu_offload

        self.traffic.parked = place_resident(dit, source, self.setting.dtype, CPU)
        original = accelerate.hooks.set_module_tensor_to_device

        def counted(module: nn.Module, name: str, device: Any, value: Tensor | None = None, **named: Any) -> Any:
            owner, _, leaf = name.rpartition(".")
            before = getattr(module.get_submodule(owner), leaf)
            if torch.device(device).type == "meta":
                self.went(0 if before.is_meta else before.nbytes)
            elif value is not None and before.is_meta:
                self.came(value.nbytes)
            return original(module, name, device, value=value, **named)

        cpu_offload(dit, execution_device=self.setting.device, preload_module_classes=UNITS)
        self._open.enter_context(mock.patch.object(accelerate.hooks, "set_module_tensor_to_device", counted))


class AccelerateHook(Peer):
    """accelerate's `cpu_offload_with_hook`: the whole model comes in at its first call and stays until another model
    asks for its place, which here none does."""

    def attach(self, dit: AvatarDiT, source: TensorSource) -> None:
        from accelerate import cpu_offload_with_hook
        from accelerate.hooks import CpuOffload

        self.traffic.parked = place_resident(dit, source, self.setting.dtype, CPU)
        original = CpuOffload.pre_forward

        def counted(hook: Any, module: nn.Module, *given: Any, **named: Any) -> Any:
            if not self.here:
                self.came(sum(p.nbytes for p in module.parameters()))
            return original(hook, module, *given, **named)

        cpu_offload_with_hook(dit, self.setting.device)
        self._open.enter_context(mock.patch.object(CpuOffload, "pre_forward", counted))


class GroupOffload(Peer):
    """diffusers' group offloading. By leaves, modules whose weights are used without a call of their own (embedding of
    time, head, one norm a block) rest on the device: nothing would bring them in."""

    def __init__(self, setting: Setting, level: str, record_stream: bool = False) -> None:
        super().__init__(setting)
        self.level, self.record_stream = level, record_stream

    def attach(self, dit: AvatarDiT, source: TensorSource) -> None:
        from diffusers.hooks import group_offloading

        self.traffic.parked = place_resident(dit, source, self.setting.dtype, CPU)
        streams = self.setting.device.type == "cuda"
        named: dict[str, Any] = {"num_blocks_per_group": 1} if self.level == "block_level" else {}
        if streams:
            named |= {"use_stream": True, "non_blocking": True, "record_stream": self.record_stream}
        with self._aside(dit):
            self._count(group_offloading.ModuleGroup)
            group_offloading.apply_group_offloading(
                dit,
                onload_device=self.setting.device,
                offload_device=CPU,
                offload_type=self.level,
                **named,
            )
        self.here = self.resident

    @contextmanager
    def _aside(self, dit: AvatarDiT) -> Iterator[None]:
        """Modules that rest on the device are out of the library's sight while it looks for what to offload."""
        taken: list[tuple[nn.Module, str, nn.Module]] = []
        if self.level == "leaf_level":
            taken = [(dit, "embed", dit.embed), (dit, "head", dit.head)]
            taken += [(block, "norm3", block.get_submodule("norm3")) for block in dit.blocks]
        for owner, name, _ in taken:
            del owner._modules[name]
        yield
        for owner, name, module in taken:
            owner._modules[name] = module.to(self.setting.device)
        self.resident = sum(p.nbytes for _, _, module in taken for p in module.parameters())
        self.traffic.parked -= self.resident

    def _count(self, group: Any) -> None:
        """Note what each group brings in and gives back."""
        onload, offload, there = group.onload_, group.offload_, set[int]()

        def size(which: Any) -> int:
            tensors = [p for module in which.modules for p in module.parameters()] + list(which.parameters)
            return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

        def brought(which: Any) -> None:
            if id(which) not in there:
                there.add(id(which))
                self.came(size(which))
            onload(which)

        def given_back(which: Any) -> None:
            if id(which) in there:
                there.discard(id(which))
                self.went(size(which))
            offload(which)

        self._open.enter_context(mock.patch.object(group, "onload_", brought))
        self._open.enter_context(mock.patch.object(group, "offload_", given_back))


class DoubleBuffer(Peer):
    """Two buffers for blocks and a host that waits for both streams after each block, as LightX2V's block offload
    works: written anew from its description. What lies outside the blocks rests on the device, as it does there."""

    def attach(self, dit: AvatarDiT, source: TensorSource) -> None:
        device, dtype = self.setting.device, self.setting.dtype
        blocks = {name: unit for name, unit in dit.units().items() if name.startswith("blocks.")}
        rest = {name for name in dit.units() if name not in blocks}
        resident = place_resident(dit, source, dtype, device, rest)
        self.layouts = {name: SlabLayout.of(unit, dtype) for name, unit in blocks.items()}
        self.units, self.slabs = blocks, {}
        for name, layout in self.layouts.items():
            slab = allocate(layout.nbytes, CPU)
            layout.fill(slab, source, name)
            self.slabs[name] = slab.pin_memory() if device.type == "cuda" else slab
            self.traffic.parked += slab.nbytes
        size = max(layout.nbytes for layout in self.layouts.values())
        self.buffers = [allocate(size, device) for _ in range(2)]
        self.here = self.most = resident + 2 * size
        self.load = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self.order: list[str] = []
        self.coming: str | None = None  # what buffer 0 holds, or is about to
        for unit in blocks.values():
            vacate(unit, dtype, device)
        dit.residency = self

    def begin(self, names: Sequence[str], then: Sequence[str] | None = None) -> None:
        self.order = [name for name in names if name in self.units]
        if self.order and self.coming != self.order[0]:
            self._bring(self.order[0], 0)
            self._meet()
            self.coming = self.order[0]

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        if name not in self.units:
            yield
            return
        after = self.order[(self.order.index(name) + 1) % len(self.order)]
        self._bring(after, 1)
        self._lend(name)
        yield
        self._meet()
        self.buffers.reverse()
        self.coming = after

    def _lend(self, name: str) -> None:
        point(self.units[name], self.layouts[name].views(self.buffers[0]))

    def _bring(self, name: str, buffer: int) -> None:
        room = self.buffers[buffer][: self.slabs[name].nbytes]
        self.weights_in, self.fetches = self.weights_in + room.nbytes, self.fetches + 1
        if self.load is None:
            room.copy_(self.slabs[name])
            return
        with torch.cuda.stream(self.load):
            room.copy_(self.slabs[name], non_blocking=True)

    def _meet(self) -> None:
        if self.load is not None:
            self.load.synchronize()
            torch.cuda.current_stream().synchronize()


def _grouped(level: str, record: bool = False) -> Callable[[Setting], Way]:
    return lambda setting: GroupOffload(setting, level, record)


def kinds() -> dict[str, Callable[[Setting], Way]]:
    """Peers by name."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return {
        "accelerate": Accelerate,
        "accelerate_hook": AccelerateHook,
        "diffusers_leaf": _grouped("leaf_level"),
        "diffusers_leaf_record": _grouped("leaf_level", True),
        "diffusers_block": _grouped("block_level"),
        "diffusers_block_record": _grouped("block_level", True),
        "double_buffer": DoubleBuffer,
    }
