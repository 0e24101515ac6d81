"""What shrinks with the model: the state of its optimizers, and copies of it."""
