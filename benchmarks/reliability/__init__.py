"""What was tried to break the library, and what came of it: docs/reliability.md."""
