"""The paper's tables and figures on the small LLaVA, one module each: ``make reproduce``."""
