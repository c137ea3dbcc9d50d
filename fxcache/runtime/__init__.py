"""What happens at a call: contexts, state tensors, statistics. Knows nothing about graphs."""
