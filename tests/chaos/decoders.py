"""Processes of `flagsplit decode-serve` for one program, to be killed and started again on their ports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.chaos.listening import Listening


class Decoders:
    """Some replicas of a program's service.

    Args:
        program: its folder.
        count: how many.
        environment: their homes.
        options: more words for the command line.
    """

    def __init__(self, program: Path, count: int, environment: Mapping[str, str], *options: str) -> None:
        words = ("decode-serve", str(program), "--log-level", "warning", *options)
        self.replicas = [Listening(words, environment) for _ in range(count)]
        for replica in self.replicas:
            replica.await_start()

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self.replicas]

    @property
    def digest(self) -> str:
        return str(self.replicas[0].about["bundle"])

    def kill(self, index: int) -> None:
        """End a process without a last word."""
        self.replicas[index].end()

    def drain(self, index: int) -> int:
        """Tell a process to end, and wait until it has; its exit code."""
        replica = self.replicas[index]
        replica.process.terminate()
        replica.bury()
        return replica.process.returncode

    def revive(self) -> None:
        """Start the processes that were killed, and wait until they listen."""
        dead = [replica for replica in self.replicas if replica.process.poll() is not None]
        for replica in dead:
            replica.restart()
        for replica in dead:
            replica.await_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            replica.end()
