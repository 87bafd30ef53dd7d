"""Live: sound that is still to come goes in while pictures come out; several streams share one set of weights."""
