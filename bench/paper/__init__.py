"""The paper's experiments, trained end to end by several contestants side by side."""
