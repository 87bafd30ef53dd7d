"""Pure functions and leaf layers: attention, rotary positions, embeddings, LoRA arithmetic."""
