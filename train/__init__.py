"""Training the Flax models: recipes, data, the step, the loop and the hand-over to torch."""
