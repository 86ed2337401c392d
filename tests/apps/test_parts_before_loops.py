"""What crosses to a plan's loop, made by a session and workers, against the segments run one after the other."""

from pathlib import Path

import numpy as np
import pytest
from tests.apps.conftest import Serve
from tests.apps.test_program_bundle import built, every_cut, made, request, run_steps, sizes_of

import flagsplit
from flagsplit.errors import ConfigError, PolicyError
from flagsplit.runtime.bundle import Bundle
from flagsplit.runtime.loop_boundary import facts_before_loop
from flagsplit.runtime.session import Session
from flagsplit.transport.messages import PeerAddress
from flagsplit.transport.security import KeyStore
from flagsplit.transport.zeromq import ZmqChannel

pytestmark = pytest.mark.slow


def session(bundle: Bundle, plan: str, addresses: dict[str, str]) -> Session:
    channel = ZmqChannel(security=KeyStore().security())
    workers = {tier: PeerAddress(address) for tier, address in addresses.items()}
    return Session(bundle, workers, channel, part=facts_before_loop(bundle, plan))


@pytest.mark.parametrize("family", ["moonshine", "whisper"])
def test_every_plan_makes_what_crosses_to_its_loop(tmp_path: Path, serve: Serve, family: str) -> None:
    """The workers run what is theirs of it; that of the loop is not needed, nor asked."""
    program = made(family)
    options = {"dims": sizes_of(program), "extra_plans": every_cut(5)}
    bundle = built(program, tmp_path, "phone,edge,cloud", options=options)
    parts, addresses, inputs = bundle.program, serve(bundle), request(bundle, 1)
    assert parts is not None
    divided = 0
    for name, found in parts.plans.items():
        between = {bundle.tiers[step.tier] for step in found.before} - {"phone"}
        divided += bool(between) and any(step.tier == 0 for step in found.before)
        with session(bundle, name, {tier: addresses[tier] for tier in between}) as asked:
            answer = asked.run(inputs, plan=name, deadline_s=10)
        wanted = run_steps(bundle, found.before, inputs)
        assert answer.report.plan == name
        assert set(answer) == {tensor.name for tensor in found.boundary}
        for tensor, array in answer.items():
            np.testing.assert_array_equal(array, wanted[tensor], f"{tensor} of plan {name}")
    assert divided


def test_plans_that_make_the_same_stand_in_for_each_other(tmp_path: Path, serve: Serve) -> None:
    program = made("moonshine")
    bundle = built(program, tmp_path, "phone,edge,cloud", options={"dims": sizes_of(program)})
    facts = facts_before_loop(bundle, "phone+cloud-hidden")
    assert {"phone+cloud-hidden", "phone+edge-hidden"} <= {plan.name for plan in facts.pool.plans}
    with session(bundle, "phone+cloud-hidden", {}) as asked:
        answer = asked.run(request(bundle, 1), deadline_s=10)
        assert answer.report.links == ()
        with pytest.raises(ConfigError, match="a part of its bundle"):
            asked.swap(bundle)
        with pytest.raises(ConfigError, match="a part of its bundle"):
            asked.update_sla({})


def test_what_has_no_loop(small_bundle: Path, tmp_path: Path, own_folders: None) -> None:
    with pytest.raises(ConfigError, match="has no program"):
        facts_before_loop(flagsplit.open(small_bundle), "all-phone")
    program = made("moonshine")
    bundle = built(program, tmp_path, options={"dims": sizes_of(program)})
    with pytest.raises(PolicyError, match="no stream can be served under plan 'spilt'"):
        facts_before_loop(bundle, "spilt")
