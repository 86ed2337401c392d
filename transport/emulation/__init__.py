"""Slow and broken networks on one host, without privileges: a proxy in user space that shapes what it carries.

    proxy.py     what it offers          profiles.py  links by name or text     events.py   what can happen to a link
    carrier.py   the bytes through it    trace.py     bandwidth over time       script.py   when what happens
    pacer.py     when each comes out     trace_files.py  the same in files      player.py   the thread that does it

How to use it, and what it does not emulate, is in `docs/emulation.md`.
"""

from flagsplit.transport.emulation.events import (
    AnyEvent,
    BringUp,
    Corrupt,
    CutAfter,
    Drop,
    Event,
    HalfClose,
    Heal,
    Lasting,
    Partition,
    Profile,
    Reset,
    Resume,
    Shape,
    Stall,
    TakeDown,
)
from flagsplit.transport.emulation.pacer import LinkShape
from flagsplit.transport.emulation.player import Player, apply, emulated_link
from flagsplit.transport.emulation.profiles import PROFILES, LinkProfile, parse_profile
from flagsplit.transport.emulation.proxy import LinkState, ShapingProxy
from flagsplit.transport.emulation.script import (
    Script,
    SetShapes,
    Step,
    load_script,
    merged,
    parse_script,
    steps_of_trace,
)
from flagsplit.transport.emulation.trace import Trace, TracePoint, lte_like, shapes_at
from flagsplit.transport.emulation.trace_files import load_trace, parse_trace

__all__ = [
    "PROFILES",
    "AnyEvent",
    "BringUp",
    "Corrupt",
    "CutAfter",
    "Drop",
    "Event",
    "HalfClose",
    "Heal",
    "Lasting",
    "LinkProfile",
    "LinkShape",
    "LinkState",
    "Partition",
    "Player",
    "Profile",
    "Reset",
    "Resume",
    "Script",
    "SetShapes",
    "Shape",
    "ShapingProxy",
    "Stall",
    "Step",
    "TakeDown",
    "Trace",
    "TracePoint",
    "apply",
    "emulated_link",
    "load_script",
    "load_trace",
    "lte_like",
    "merged",
    "parse_profile",
    "parse_script",
    "parse_trace",
    "shapes_at",
    "steps_of_trace",
]
