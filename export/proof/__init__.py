"""Whether an artefact still answers like its model: parity, decisions, metrics."""
