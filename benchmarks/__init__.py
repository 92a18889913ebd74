"""What is measured, and how; each folder is a program: `python -m benchmarks.NAME`."""
