"""The masters of the course, in plain text, and what builds notebooks, data and weights from them.

A lesson is two masters in jupytext's percent format, `lessons/NN_slug.py` and
`exercises/NN_slug.py`. In an exercise, the cell to be written by the learner holds one function
with `### BEGIN SOLUTION` … `### END SOLUTION` inside it, and the cell that checks it begins with
`# %% points=2` and calls `check.name(name)`. Everything else (nbgrader's metadata, ids, the
bootstrap cell, outputs) is the business of `python -m authoring.build`.
"""
