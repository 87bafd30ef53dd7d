"""Fabric strategies: how units come to life, where their weights rest, which rank speaks for all."""
