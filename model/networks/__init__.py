"""The networks, their checkpoints, and the one registry that knows them by name."""
