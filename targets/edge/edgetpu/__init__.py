"""Coral's Edge TPU: int8 .tflite files that its compiler maps, checked against a table of what is known of it.

`facts` is the table, `forms` writes operators that it lacks in those that it has, `verdicts` asks about a node,
`mapping` about a program, with memory and time, `pipeline` divides a program among several, `ends` leaves to the host
what belongs there, `compiler` runs Coral's compiler where there is one, and `target` puts it together.
"""
