"""Who computes next: runs wait here by client, and clients get equal shares of the compute time that was measured.

This is deficit round robin with the smallest quantum there is: the client that had the least time goes first, and those
that had as much take turns. What a run takes is known only afterwards, so a client is charged at once what such runs
took before, and the difference when the run has ended. Pure: times come in as arguments. The thread that runs what is
taken is in `flagsplit.runtime.engine`.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from flagsplit.runtime.events import Run

SegmentKey = tuple[str, str]
"""A bundle's digest and the id of a segment in it."""

_NEWEST_SHARE = 0.25
"""How much the last run counts in what is expected of the next."""


@dataclass(frozen=True, eq=False)
class Job:
    """A run that waits or is under way.

    Attributes:
        run: what was asked for.
        asked_s: when.
        expected_s: seconds that such runs took before; 0 if there was none.
        number: its place in the order of asking.
    """

    run: Run
    asked_s: float
    expected_s: float
    number: int

    @property
    def key(self) -> SegmentKey:
        """The segment that it needs."""
        return self.run.bundle, self.run.segment


@dataclass(eq=False)
class _Client:
    """One client's jobs in the order of asking, and the compute time that it had.

    `turn` is when it was served last: of clients that had as much time, the one that waits for longest goes first.
    """

    used_s: float
    turn: int
    jobs: dict[int, Job] = field(default_factory=dict)
    running: int = 0
    waiting_s: float = 0.0
    deadlines: list[tuple[float, int]] = field(default_factory=list)

    @property
    def is_active(self) -> bool:
        return bool(self.jobs) or self.running > 0

    def push(self, job: Job) -> None:
        self.jobs[job.number] = job
        self.waiting_s += job.expected_s
        if job.run.deadline < math.inf:
            heapq.heappush(self.deadlines, (job.run.deadline, job.number))

    def remove(self, job: Job) -> None:
        del self.jobs[job.number]
        self.waiting_s = self.waiting_s - job.expected_s if self.jobs else 0.0

    def first_deadline(self) -> float:
        while self.deadlines and self.deadlines[0][1] not in self.jobs:
            heapq.heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else math.inf


class FairQueue:
    """Runs that wait, by client.

    Of clients that always have something waiting, none gets ahead of another by more than one run. A client that comes
    (back) waits for the run under way and at most one run of each other client, give or take what runs were expected to
    take and did not. Nothing idles while something waits.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._floor_s = 0.0
        self._numbers = count()
        self._typical_s: dict[SegmentKey, float] = {}
        self._wanted: Counter[SegmentKey] = Counter()
        self._under_way: dict[Job, float] = {}

    def __len__(self) -> int:
        return self._wanted.total()

    def waiting_for(self, key: SegmentKey) -> int:
        """How many runs wait for a segment."""
        return self._wanted[key]

    def push(self, run: Run, now: float) -> None:
        """A run was asked for."""
        self._raise_floor()
        number = next(self._numbers)
        client = self._clients.setdefault(run.client, _Client(self._floor_s, number))
        if not client.is_active:
            client.used_s = max(client.used_s, self._floor_s)
        job = Job(run, now, self._typical_s.get((run.bundle, run.segment), 0.0), number)
        client.push(job)
        self._wanted[job.key] += 1

    def choose(self, now: float, fits: Callable[[Job], bool] = lambda _: True) -> Job | None:
        """The job to run next; it stays in the queue until it is taken.

        Args:
            now: time in seconds.
            fits: whether a job can run at all now, for instance because its segment is loaded.
        """
        sharing = sum(client.is_active for client in self._clients.values())
        waiting = (client for client in self._clients.values() if client.jobs)
        for client in sorted(waiting, key=lambda client: (client.used_s, client.turn)):
            job = _next_of(client, now, fits, sharing)
            if job is not None:
                return job
        return None

    def take(self, job: Job, now: float) -> None:
        """A waiting job begins; its client is charged what it is expected to take."""
        client = self._drop(job)
        client.running += 1
        client.used_s += job.expected_s
        client.turn = next(self._numbers)
        self._under_way[job] = now

    def finish(self, job: Job, took_s: float | None) -> None:
        """A job that was taken has ended.

        Args:
            job: the job.
            took_s: compute time in seconds, of a batch its share; None if it could not run at all.
        """
        del self._under_way[job]
        client = self._clients[job.run.client]
        client.running -= 1
        client.used_s += (took_s or 0.0) - job.expected_s
        if took_s is not None:
            before = self._typical_s.get(job.key, took_s)
            self._typical_s[job.key] = before + _NEWEST_SHARE * (took_s - before)
        self._forget_idle()

    def skip(self, token: int) -> list[Run]:
        """Take out the runs of that token that did not begin."""
        return self._take_out(lambda job: job.run.token == token)

    def skip_bundle(self, bundle: str) -> list[Run]:
        """Take out the runs of a bundle that did not begin, and forget what its segments took."""
        self._typical_s = {key: took_s for key, took_s in self._typical_s.items() if key[0] != bundle}
        return self._take_out(lambda job: job.run.bundle == bundle)

    def first_deadline(self) -> float:
        """When the first of the runs that wait is late."""
        return min((client.first_deadline() for client in self._clients.values()), default=math.inf)

    def expired(self, now: float) -> list[Run]:
        """Take out the runs whose deadline has passed."""
        if now <= self.first_deadline():
            return []
        return self._take_out(lambda job: job.run.deadline < now)

    def expected_wait_s(self, now: float, client: str = "") -> float:
        """How long a run that is asked for now would wait, as far as earlier runs tell.

        Args:
            now: time in seconds.
            client: who would ask; by default somebody new.
        """
        left_s = sum(max(0.0, job.expected_s - (now - began)) for job, began in self._under_way.items())
        known = self._clients.get(client)
        own_s = known.waiting_s if known is not None else 0.0
        for other in self._clients.values():
            if other.jobs and other is not known:
                left_s += min(other.waiting_s, max(own_s, next(iter(other.jobs.values())).expected_s))
        return left_s + own_s

    def _jobs(self) -> Iterator[Job]:
        for client in self._clients.values():
            yield from client.jobs.values()

    def _take_out(self, is_out: Callable[[Job], bool]) -> list[Run]:
        found = [job for job in self._jobs() if is_out(job)]
        for job in found:
            self._drop(job)
        self._forget_idle()
        return [job.run for job in found]

    def _drop(self, job: Job) -> _Client:
        client = self._clients[job.run.client]
        client.remove(job)
        self._wanted[job.key] -= 1
        if not self._wanted[job.key]:
            del self._wanted[job.key]
        return client

    def _raise_floor(self) -> None:
        """Who comes (back) starts level with the one that had least: no credit is saved up while away."""
        active = [client.used_s for client in self._clients.values() if client.is_active]
        if active:
            self._floor_s = max(self._floor_s, min(active))

    def _forget_idle(self) -> None:
        """A client that is away keeps its debt until the others have had as much, or nobody is left to share with."""
        self._raise_floor()
        if not any(client.is_active for client in self._clients.values()):
            self._clients.clear()
            self._floor_s = 0.0
            return
        self._clients = {
            name: client for name, client in self._clients.items() if client.is_active or client.used_s > self._floor_s
        }


def _next_of(client: _Client, now: float, fits: Callable[[Job], bool], sharing: int) -> Job | None:
    """First come, first served; where that would miss a deadline, the earliest of those that can still be kept."""
    if now + client.waiting_s * sharing <= client.first_deadline():
        return next((job for job in client.jobs.values() if fits(job)), None)
    fitting = [job for job in client.jobs.values() if fits(job)]
    ends = now
    for job in fitting:
        ends += job.expected_s * sharing
        if ends > job.run.deadline:
            break
    else:
        return fitting[0] if fitting else None
    in_time = [job for job in fitting if now + job.expected_s <= job.run.deadline]
    return min(in_time, key=lambda job: job.run.deadline, default=fitting[0])
