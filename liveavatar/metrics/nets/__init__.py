"""Networks that metrics look with: the published architectures, for weights that the user has. Nothing is fetched."""
