"""Mutation testing: small faults are put into the package one by one, and the fast tests must notice each.

    python -m tests.mutants --sites 300 --seed 0 --jobs 2

targets.py names the files, sites.py finds where a fault can be (syntax.py: the text of a node), recording.py runs the
suite once under coverage to learn which test executes which line, selection.py orders the tests of a fault, running.py
tries them in a copy of the checkout (checkout.py), report.py counts. inside/ runs in the processes of the judged
checkout, which may be another one (``--root``) and need not hold this tool.

equivalents.txt argues for faults that change nothing; they count as survivors all the same. Needs ``pip install
coverage``; not part of any other target, and slow: about a minute per surviving fault.
"""
