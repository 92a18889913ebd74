"""The paper's tables and figures on the small LLaVA, one file each: ``make reproduce``."""
