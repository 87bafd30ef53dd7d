"""Weights on their way in: name maps, lazy reading, LoRA, packing into slabs, placing."""
