"""Fused groups: nodes that engines run as one kernel, so that no cut shall divide them.

A recogniser per file looks at one node and says which nodes belong with it; `table` lists them and settles overlaps.
Nothing is rewritten: groups are names for nodes, and `flagsplit.flagir.blocks` keeps each inside one block.
"""

from flagsplit.flagir.groups.table import FusedGroup, find_groups, recognisers

__all__ = ["FusedGroup", "find_groups", "recognisers"]
