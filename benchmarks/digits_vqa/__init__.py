"""A small real vision-language model that answers questions about handwritten digits."""
