"""Samples of GE ops by kernel family; ``ALL_CASES`` collects them."""
