"""What other tools look for in this library."""
