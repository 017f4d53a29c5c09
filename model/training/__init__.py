"""Training: loading, the recipe, the run folder, the loop, several processes, progress and curves."""
