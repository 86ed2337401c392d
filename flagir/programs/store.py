"""A program on disk: a folder with a graph file for each graph, their weights in one file, facts and tokenizer.

Equal weights of several graphs are stored once. What is read may have been written by a stranger.
"""

from pathlib import Path

from flagsplit.errors import ModelError
from flagsplit.flagir.model_file import read_model
from flagsplit.flagir.programs.program import Program, ProgramFacts, check_graphs, graph_names
from flagsplit.flagir.store import save_all
from flagsplit.flagir.verify import check

FACTS_NAME = "program.json"
TOKENIZER_NAME = "tokenizer"
MAX_FACTS_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 64 << 20


def save_program(program: Program, folder: Path) -> None:
    """Write a program; afterwards the large weights of its graphs are mapped from the file written.

    Args:
        program: its graphs are canonical.
        folder: exists and is empty.

    Raises:
        ModelError: the graphs are not those that the facts promise.
    """
    check_graphs(program)
    save_all({f"{name}.onnx": program.graphs[name] for name in graph_names(program.facts.kind)}, folder)
    (folder / TOKENIZER_NAME).write_bytes(program.tokenizer)
    (folder / FACTS_NAME).write_bytes(program.facts.to_json())


def load_program(folder: Path) -> Program:
    """Read what `save_program` wrote; weights stay on disk until used.

    Raises:
        ModelError: a file is missing, damaged or too large, or the graphs are not canonical or not those that the
            facts promise.
    """
    facts = ProgramFacts.from_json(read_file(folder / FACTS_NAME, MAX_FACTS_BYTES))
    tokenizer = read_file(folder / TOKENIZER_NAME, MAX_TOKENIZER_BYTES)
    graphs = {name: read_model(folder / f"{name}.onnx") for name in graph_names(facts.kind)}
    for model in graphs.values():
        check(model)
    program = Program(facts, graphs, tokenizer)
    check_graphs(program)
    return program


def read_file(path: Path, most_bytes: int) -> bytes:
    """A file of a folder that a stranger may have written.

    Raises:
        ModelError: it is not there, no file, or larger than that.
    """
    try:
        if not path.is_file():
            raise ModelError(f"expected {path.name} in {path.parent}, there is none; is it the right folder?")
        if path.stat().st_size > most_bytes:
            raise ModelError(f"expected {path} to have at most {most_bytes} bytes, it has {path.stat().st_size}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
