"""The causal video diffusion transformer, as an ordered list of units over a `CellState`."""
