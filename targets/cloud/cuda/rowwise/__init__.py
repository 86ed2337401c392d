"""Computations whose result for a row depends on that row alone: the same bits, whatever else is in the batch.

Libraries choose kernels by the number of rows, and with them the order of sums: the tokens of a stream would depend on
how many others there are. Here the order is fixed by the sizes of the weights, by the width and by a key's position.
"""
