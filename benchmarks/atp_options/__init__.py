"""How each choice that the paper leaves open measures on the small model."""
