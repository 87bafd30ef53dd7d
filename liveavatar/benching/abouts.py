"""What ways are called in tables, and what the planner knows them as. Loads no torch."""

from __future__ import annotations

from typing import Any

ABOUTS = {
    "resident": "everything on the device: the reference",
    "resident_plain": "the same, with conditioning made in every cell, as peers do",
    "resident_fp8": "resident, matrices in fp8 (lossy)",
    "stream_k1": "ours: fsdp_stream from host memory, K = 1",
    "stream_k2": "ours: fsdp_stream from host memory, K = 2 cells share an arrival",
    "stream_k4": "ours: fsdp_stream from host memory, K = 4 cells share an arrival",
    "stream_k4_auto": "ours: K = 4, as many blocks resident as fit",
    "stream_k4_plain": "ours: K = 4, conditioning not hoisted",
    "stream_k4_r3": "ours: K = 4, three slots",
    "stream_k4_prefix_auto": "ablation of ours: the same, but the first blocks resident instead of spread ones",
    "stream_k4_pageable": "ablation of ours: K = 4, weights in pageable instead of page-locked memory",
    "stream_k4_fp8": "ours: K = 4, matrices in fp8 (lossy)",
    "stream_peers": "ours: fsdp_stream, shards on the ranks, K = 4",
    "fsdp2_reference": "FSDP2, blocks wrapped as upstream does",
    "fsdp2_units": "FSDP2, every unit wrapped",
    "fsdp2_offload": "FSDP2 with CPUOffloadPolicy, prefetch 1",
    "diagonal_stage": "one stage of diagonal_pipeline alone, with its activation hop",
    "accelerate": "accelerate cpu_offload, a unit at a time",
    "accelerate_hook": "accelerate cpu_offload_with_hook: the whole model at once, and it stays",
    "diffusers_leaf": "diffusers group offload by leaves (streams on a GPU)",
    "diffusers_leaf_record": "the same with record_stream",
    "diffusers_block": "diffusers group offload by blocks (streams on a GPU)",
    "diffusers_block_record": "the same with record_stream",
    "double_buffer": "our re-implementation of LightX2V's double buffer",
}

PLANS: dict[str, dict[str, Any]] = {
    "resident": {"source": "device"},
    "resident_plain": {"source": "device"},
    "resident_fp8": {"source": "device"},
    **{f"stream_k{cells}": {"source": "host", "cells": cells} for cells in (1, 2, 4)},
    **{f"stream_k4_{more}": {"source": "host", "cells": 4} for more in ("auto", "plain", "fp8")},
    "stream_k4_r3": {"source": "host", "cells": 4, "slots": 3},
    "stream_k4_prefix_auto": {"source": "host", "cells": 4},
    "fsdp2_units": {"source": "shards"},
    "fsdp2_reference": {"source": "shards", "wrap": "reference"},
    "fsdp2_offload": {"source": "shards", "offload": True},
}
