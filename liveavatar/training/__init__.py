"""The trainer of small models and of adapters, and the procedural data that the embedded model learned from."""
