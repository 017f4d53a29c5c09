"""Operators that the network needs and no library ships, each with several implementations."""
