"""Programs: generative models as several FlagIR graphs, with the facts by which their tokens are made.

`program` says what one is, `store` keeps it on disk. docs/programs.md is the specification.
"""

from flagsplit.flagir.programs.program import Program, ProgramFacts, check_graphs, graph_names
from flagsplit.flagir.programs.store import load_program, save_program

__all__ = ["Program", "ProgramFacts", "check_graphs", "graph_names", "load_program", "save_program"]
