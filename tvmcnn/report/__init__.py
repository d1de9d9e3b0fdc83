"""Report: what a library is and does, for a person who would rather look than read.

facts.py collects the figures; page.py makes a web page of them, with the drawings of graph.py and plots.py.
"""
