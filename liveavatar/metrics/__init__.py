"""Numbers about a run: the arithmetic in pure functions, the meters as sinks."""
