"""The paper's benchmarks through lmms-eval, and training on LLaVA's own data: see README.md."""
