"""The type checker that tests put behind the shape annotations of ops, models and sampling (see `conftest.py`)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is welcome where a float is asked for, as everywhere in Python."""
