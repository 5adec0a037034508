"""The report: result folders in, the paper's tables out.

`runs.py` reads folders, `groups.py` says which runs may be averaged, `published.py` holds the figures of the literature,
`layout.py` sets both side by side, and `tables.py`, `figures.py` and `page.py` write it down.
"""
