"""Single-device modules, one forward each; they know nothing of processes or configuration."""
