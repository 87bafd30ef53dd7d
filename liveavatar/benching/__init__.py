"""Measuring side by side: what each strategy and each peer costs in memory and time on the same work."""
