"""Training: the loop, its losses and data, and the stages that it runs."""
