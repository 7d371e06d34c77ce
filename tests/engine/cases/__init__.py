"""Samples of GE ops by kernel family; ``ALL_CASES`` of test_op_table.py collects them."""
