"""Snapdragon: segments as context binaries for the Hexagon NPU (HTP) of a named system on a chip.

`target.py` is the target; `prepare.py` rewrites what the compiler does not take; `process.py` runs Qualcomm's SDK in a
process of its own, `sdk.py` is what runs there. `table.py` reads the support table that `probe.py` makes.
"""
