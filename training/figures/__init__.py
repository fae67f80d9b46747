"""The figures of arXiv 2606.04351 (sections 5.4 to 5.6, appendix C), measured anew; `training.reproduce` is their command.

Each figure is a class with the same four parts (`figure.Figure`): its settings, its cells, how a cell is measured, what is told of all of
them. Pictures are decoded from the files for each cell, not taken from the table `frames`, which has them at one size and number.
"""
