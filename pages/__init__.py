"""The frame of every HTML page that msmamba writes: one file, its pictures inside, nothing to load."""
