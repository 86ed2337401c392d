"""Bundle files that are damaged, lie or attack: an error in one line, nothing left behind, never a wrong byte."""

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.bundles import build_bundle, inputs_of, write_model

import flagsplit
from flagsplit.errors import BundleError, ConfigError, FlagsplitError
from flagsplit.runtime import archive
from flagsplit.runtime.archive import MANIFEST_NAME, Unpacked, unpack, write_archive
from flagsplit.runtime.bundle import PLANS_NAME, PlanSet
from flagsplit.runtime.manifest import FORMAT, Facts, Model, Tensor, Tier, TierArtifact, read_manifest, write_manifest

_RNG = random.Random(5)
MEMBERS: dict[str, bytes] = {
    "plans.json": b'{"some": "plans"}' * 40,
    "flagir/model.onnx": _RNG.randbytes(5000),
    "flagir/weights.bin": _RNG.randbytes((1 << 20) + 17),
    "tiers/edge/ort/a.onnx": b"",
    "tiers/edge/ort/b.onnx": _RNG.randbytes(300),
    "tiers/cloud/ort/large.bin": bytes(1 << 20),
}


def facts_of(sizes: dict[str, int], version: tuple[int, int] = FORMAT) -> Facts:
    artifact = TierArtifact(target="ort", version="1", folder="tiers/edge/ort", entries={})
    return Facts(
        format=version,
        model=Model(name="m", sha256="0" * 64),
        tiers=[Tier(name="edge", device="d", artifacts=[artifact])],
        inputs=[Tensor(name="x", dtype="float32", shape=[1])],
        outputs=[],
        nominal_dims={},
        weights_bytes=sizes.get("flagir/weights.bin", 0),
        sizes=sizes,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good bundle."""
    path = tmp_path_factory.mktemp("whole") / "b.flagsplit"
    write_archive(path, dict(MEMBERS), facts_of)
    return path.read_bytes()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def put(data: bytes) -> Path:
        path = tmp_path / "b.flagsplit"
        path.write_bytes(data)
        return path

    return put


def refused(path: Path, cache: Path, kind: type[FlagsplitError] = BundleError) -> str:
    """The message with which a bundle is refused; nothing may be left of it."""
    with pytest.raises(kind) as caught:
        unpack(path, cache)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or "bundle" in message
    assert not [left for left in cache.glob("**/*") if left.name != ".lock"] if cache.is_dir() else True
    return message


def check_content(unpacked: Unpacked) -> None:
    for name, data in MEMBERS.items():
        assert (unpacked.folder / name).read_bytes() == data


def forge(members: dict[str, bytes], **changes: Any) -> bytes:
    """A zip with a manifest that fits, apart from the changes: `subjects`, `sizes`, `manifest` or `deflate`."""
    subjects = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    subjects.update(changes.get("subjects", {}))
    sizes = {name: len(data) for name, data in members.items()} | changes.get("sizes", {})
    manifest = write_manifest(subjects, facts_of(sizes))
    if "manifest" in changes:
        manifest = json.dumps(changes["manifest"](json.loads(manifest))).encode()
    import io

    buffer = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if changes.get("deflate") else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", how) as out:
        for name, data in [*members.items(), *changes.get("extra", ())]:
            out.writestr(name, data)
        out.writestr(MANIFEST_NAME, manifest)
    return buffer.getvalue()


SMALL = {"plans.json": b"{}", "a/b": b"12345"}


def test_the_same_input_gives_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other-name.flagsplit"
    files: dict[str, bytes | Path] = dict(reversed(MEMBERS.items()))
    (tmp_path / "w").write_bytes(MEMBERS["flagir/weights.bin"])
    files["flagir/weights.bin"] = tmp_path / "w"
    told: list[tuple[int, int]] = []
    digest = write_archive(path, files, facts_of, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == whole
    assert told[-1] == (sum(map(len, MEMBERS.values())),) * 2
    unpacked = unpack(path, tmp_path / "cache")
    assert unpacked.digest == digest
    check_content(unpacked)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "other-name.flagsplit", "w"]


def test_large_members_are_stored_on_page_boundaries(whole: bytes, put: Callable[[bytes], Path]) -> None:
    path = put(whole)
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        stored = [info for info in opened.infolist() if info.compress_type == zipfile.ZIP_STORED]
    assert {info.filename for info in stored} == {"flagir/weights.bin", "tiers/cloud/ort/large.bin"}
    for info in stored:
        name_bytes, extra_bytes = struct.unpack_from("<HH", whole, info.header_offset + 26)
        start = info.header_offset + 30 + name_bytes + extra_bytes
        assert start % 4096 == 0
        assert whole[start : start + info.file_size] == MEMBERS[info.filename]


def test_a_truncated_bundle(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    rng = random.Random(1)
    for size in [0, 1, 21, 22, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(35))]:
        refused(put(whole[:size]), tmp_path / "cache")


def _error_or_content(path: Path, cache: Path) -> str:
    """The message, if a bundle is refused; whatever is unpacked must be right."""
    try:
        unpacked = unpack(path, cache)
    except FlagsplitError as error:
        message = str(error)
    else:
        check_content(unpacked)
        return ""
    assert "\n" not in message
    assert not [left for left in cache.glob("*") if left.name != ".lock"]
    return message


def test_flipped_bits_are_found_wherever_they_matter(
    whole: bytes, put: Callable[[bytes], Path], tmp_path: Path
) -> None:
    rng = random.Random(2)
    directory = whole.index(b"PK\x01\x02")
    starts = [whole.index(b"PK\x03\x04", at) for at in (0, 10)]
    places = [
        *(rng.randrange(directory, len(whole)) for _ in range(80)),
        *(rng.randrange(len(whole)) for _ in range(30)),
        *(start + rng.randrange(40) for start in starts for _ in range(10)),
        *(rng.randrange(directory - 4000, directory) for _ in range(20)),
    ]
    found = 0
    for number, place in enumerate(places):
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        cache = tmp_path / f"cache{number}"
        error = _error_or_content(put(bytes(data)), cache)
        assert error or place >= directory or whole[place] == 0 or place < starts[-1] + 60
        found += bool(error)
    assert found > 40


def test_every_flip_in_a_member_is_found(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    rng = random.Random(3)
    with zipfile.ZipFile(put(whole)) as opened:
        infos = [info for info in opened.infolist() if info.file_size]
    found = 0
    for number in range(60):
        info = infos[number % len(infos)]
        name_bytes, extra_bytes = struct.unpack_from("<HH", whole, info.header_offset + 26)
        start = info.header_offset + 30 + name_bytes + extra_bytes
        data = bytearray(whole)
        data[start + rng.randrange(info.compress_size)] ^= 1 << rng.randrange(8)
        error = _error_or_content(put(bytes(data)), tmp_path / f"cache{number}")
        assert error or info.compress_type == zipfile.ZIP_DEFLATED  # the last bits of a deflated member mean nothing
        found += bool(error)
    assert found >= 55


NAMES = [
    "../x",
    "/x",
    "a/../../x",
    "a\\..\\x",
    "./x",
    "a//x",
    "c:/x",
    "a/.",
    "new\nline",
    "tab\tx",
    "a/",
    "bell\x07",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder(name: str, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    refused(put(forge({**SMALL, name: b"evil"})), tmp_path / "cache")
    assert not list(tmp_path.glob("**/x"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "changes",
    [
        {"extra": [("more", b"")]},
        {"extra": [("a/b", b"12345")]},
        {"extra": [(MANIFEST_NAME, b"{}")]},
        {"subjects": {"missing": "0" * 64}, "sizes": {"missing": 3}},
        {"subjects": {"a/b": "0" * 64}},
        {"sizes": {"a/b": 6}},
        {"sizes": {"nobody": 6}},
        {"sizes": {"../../../../etc/passwd": 6}},
        {"manifest": lambda m: m | {"subject": [*m["subject"], m["subject"][0]]}},
        {"manifest": lambda m: m | {"_type": "https://in-toto.io/Statement/v0"}},
        {"manifest": lambda m: m | {"predicateType": "urn:something:else"}},
        {"manifest": lambda m: m | {"predicate": None}},
        {"manifest": lambda m: m | {"subject": [{"name": "a/b", "digest": {"sha256": "A" * 64}}]}},
        {"manifest": lambda m: {"x": m}},
        {"manifest": lambda m: []},
        {"manifest": lambda m: m | {"predicate": m["predicate"] | {"sizes": {"a\nb": -1}}}},
        {"manifest": lambda m: m | {"predicate": m["predicate"] | {"tiers": []}}},
        {"manifest": lambda m: _with_tier(m, artifacts=[])},
    ],
)
def test_a_manifest_that_does_not_fit(changes: dict[str, Any], put: Callable[[bytes], Path], tmp_path: Path) -> None:
    refused(put(forge(SMALL, **changes)), tmp_path / "cache")


def _with_tier(manifest: dict[str, Any], **change: Any) -> dict[str, Any]:
    manifest["predicate"]["tiers"][0].update(change)
    return manifest


@pytest.mark.parametrize(("version", "advice"), [([2, 0], "upgrade flagsplit"), ([0, 9], "build the bundle again")])
def test_another_major_format_says_what_to_do(
    version: list[int], advice: str, put: Callable[[bytes], Path], tmp_path: Path
) -> None:
    data = forge(SMALL, manifest=lambda m: m | {"predicate": {"format": version, "all": "else is unknown"}})
    assert advice in refused(put(data), tmp_path / "cache")


def test_a_newer_minor_format_is_read(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    data = forge(SMALL, manifest=lambda m: m | {"predicate": m["predicate"] | {"format": [1, 9], "news": 1}})
    assert unpack(put(data), tmp_path / "cache").manifest.predicate.format == (1, 9)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"9" * 100_000, b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_manifest(text: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        read_manifest(text)
    assert "\n" not in str(caught.value)


def test_a_symbolic_link_is_only_text(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/b")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    target = b"/etc/passwd"
    path = put(b"")
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(link, target)
        out.writestr(MANIFEST_NAME, write_manifest({"a/b": hashlib.sha256(target).hexdigest()}, facts_of({"a/b": 11})))
    found = unpack(path, tmp_path / "cache").folder / "a/b"
    assert not found.is_symlink()
    assert found.read_bytes() == target


def _patch_directory(data: bytes, name: bytes, offset: int, layout: str, value: int) -> bytes:
    """Change a field of a member's entry in the zip's directory, and of nothing else."""
    entry = data.rindex(name) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    changed = bytearray(data)
    struct.pack_into(layout, changed, entry + offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (8, "<H", 1),  # encrypted
        (10, "<H", 12),  # bzip2
        (10, "<H", 14),  # lzma
        (10, "<H", 99),
        (20, "<I", 0xFFFFFFF0),  # compressed size
        (24, "<I", 0xFFFFFFF0),  # size
        (24, "<I", 3),
        (42, "<I", 0xFFFFFFF0),  # where it starts
    ],
)
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("member", ["a/b", MANIFEST_NAME])
def test_a_directory_that_lies(
    member: str, deflate: bool, offset: int, layout: str, value: int, put: Callable[[bytes], Path], tmp_path: Path
) -> None:
    data = _patch_directory(forge(SMALL, deflate=deflate), member.encode(), offset, layout, value)
    refused(put(data), tmp_path / "cache")


def test_a_bomb_is_not_unpacked(put: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_DEFLATED_BYTES", 1 << 20)
    one = forge({**SMALL, "bomb": bytes((1 << 20) + 1)}, deflate=True)
    assert "over the limit" in refused(put(one), tmp_path / "cache")
    many = forge({**SMALL, **{f"bomb{i}": bytes(1 << 19) for i in range(3)}}, deflate=True)
    assert "over the limit" in refused(put(many), tmp_path / "cache")
    # A member that says it is small and is not: what it says is all that is read.
    sly = forge({**SMALL, "sly": bytes(1 << 21)}, sizes={"sly": 100}, deflate=True)
    refused(put(_patch_directory(sly, b"sly", 24, "<I", 100)), tmp_path / "cache")


def test_members_cannot_share_their_bytes(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    payload = bytes(2000)
    twins = {f"t{i}": payload for i in range(9)}
    data = forge(twins)
    start = data.rindex(b"t0") - 46
    (offset,) = struct.unpack_from("<I", data, start + 42)
    for name in twins:
        data = _patch_directory(data, name.encode(), 42, "<I", offset)
    cut = data[: offset + 2000 + 32] + data[data.index(MANIFEST_NAME.encode()) - 30 :]
    refused(put(cut), tmp_path / "cache")


def test_a_manifest_over_the_limit(
    put: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_MAX_MANIFEST_BYTES", 100)
    assert "over the limit" in refused(put(forge(SMALL)), tmp_path / "cache")


def test_things_that_are_no_bundles(tmp_path: Path, put: Callable[[bytes], Path]) -> None:
    cache = tmp_path / "cache"
    assert "no such bundle" in refused(tmp_path / "nothing.flagsplit", cache)
    assert "folder" in refused(tmp_path, cache)
    refused(put(b"PK\x05\x06" + bytes(18)), cache)
    refused(put(b"not a zip at all" * 100), cache)


def test_a_damaged_cache_is_repaired(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    path, cache = put(whole), tmp_path / "cache"
    folder = unpack(path, cache).folder
    inode = (folder / "plans.json").stat().st_ino
    assert (unpack(path, cache).folder / "plans.json").stat().st_ino == inode, "unpacked once"
    for spoil in (
        lambda: (folder / "plans.json").unlink(),
        lambda: (folder / "flagir/weights.bin").write_bytes(b"short"),
        lambda: (folder / "tiers/edge/ort/a.onnx").rename(folder / "a.onnx"),
    ):
        spoil()
        check_content(unpack(path, cache))
    assert sorted(p.name for p in cache.iterdir()) == [".lock", folder.name]


def test_a_cache_that_cannot_be_written(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(put(whole), tmp_path / "file" / "cache", ConfigError)
    assert "FLAGSPLIT_CACHE" in message


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "b.flagsplit", tmp_path / "missing" / "b.flagsplit", tmp_path):
        with pytest.raises(ConfigError) as caught:
            write_archive(path, dict(SMALL), facts_of)
        assert "-o" in str(caught.value)
    assert not list(tmp_path.parent.glob(".*.part"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_in_the_middle_leaves_the_old_bundle(tmp_path: Path) -> None:
    path = tmp_path / "b.flagsplit"
    path.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(path, dict(SMALL), facts_of, stop)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.flagsplit"]


def test_threads_that_unpack_and_repair_together(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    path, cache = put(whole), tmp_path / "cache"
    errors: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(3):
                unpack(path, cache)
        except (FlagsplitError, OSError) as error:
            errors.append(error)

    for _ in range(4):
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        folder = unpack(path, cache).folder
        check_content(unpack(path, cache))
        (folder / "plans.json").unlink()


@pytest.mark.slow
def test_processes_that_unpack_together(whole: bytes, put: Callable[[bytes], Path], tmp_path: Path) -> None:
    path, cache = put(whole), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from flagsplit.runtime.archive import unpack\n"
        f"sys.stdin.read(1); print(unpack(Path({str(path)!r}), Path({str(cache)!r})).digest)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)
    ]
    digests = {process.communicate(b"x")[0] for process in running}
    assert len(digests) == 1
    check_content(unpack(path, cache))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.slow
def test_what_killed_processes_left_behind_goes_and_what_others_unpack_stays(
    whole: bytes, put: Callable[[bytes], Path], tmp_path: Path
) -> None:
    """A container that is killed and started again for hours must not fill the disk."""
    path, cache = put(whole), tmp_path / "cache"
    code = (
        "import sys; from pathlib import Path; from flagsplit.runtime.archive import unpack\n"
        "def half_way(done, total):\n"
        "    print(done, flush=True); sys.stdin.read()\n"
        f"unpack(Path({str(path)!r}), Path({str(cache)!r}), half_way)"
    )
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as alive,
    ):
        for process in (killed, alive):
            assert process.stdout is not None
            assert process.stdout.readline()
        assert len(list(cache.glob(".*.*.*"))) == 2
        killed.kill()
        killed.wait()
        check_content(unpack(path, cache))
        (left,) = cache.glob(".*.*.*")
        assert f".{alive.pid}." in left.name
        alive.communicate()
        assert alive.returncode == 0
    assert len(list(cache.iterdir())) == 2


def test_members_are_on_the_disk_before_they_are_in_their_place(
    whole: bytes, put: Callable[[bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later starts compare sizes, and after a loss of power a file may have its size without its bytes."""
    flushed: set[int] = set()
    flush = os.fsync

    def noted(descriptor: int) -> None:
        flush(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    folder = unpack(put(whole), tmp_path / "cache").folder
    assert {each.stat().st_ino for each in folder.rglob("*") if each.is_file()} <= flushed


# --- whole bundles


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("built"))


def test_a_build_can_be_repeated(built: Path, tmp_path: Path) -> None:
    assert build_bundle(tmp_path).read_bytes() == built.read_bytes()


def test_a_pinned_bundle_runs_where_its_pins_say(tmp_path: Path) -> None:
    path = tmp_path / "pinned.flagsplit"
    pins = {"stem": "phone", "edge": "edge", "cloud": "edge", "head*": "phone"}
    model = write_model(tmp_path / "m.onnx")
    flagsplit.build(model, "phone,edge", path, sla={"pins": pins}, dims={"batch": 2})
    opened = flagsplit.open(path)
    assert {plan.placement for plan in opened.plans.pool.plans} == {(0, 1, 1, 0)}


def _steps(plans: dict[str, Any]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = plans["steps"]["plan0"]
    return steps


PLAN_LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no steps": lambda p: p["steps"].clear(),
    "a plan without steps": lambda p: p["steps"].update(plan1=[]),
    "steps of another kind": lambda p: p.update(steps=[1, 2]),
    "a step that is no object": lambda p: p["steps"].update(plan0=[3]),
    "a tier that is not there": lambda p: _steps(p)[0].update(tier=9),
    "a tier below zero": lambda p: _steps(p)[0].update(tier=-1),
    "a tier that is endless": lambda p: _steps(p)[0].update(tier=float("inf")),
    "inputs that are no names": lambda p: _steps(p)[0].update(inputs=[["x"]]),
    "inputs in one word": lambda p: _steps(p)[0].update(inputs="x"),
    "an input that nobody makes": lambda p: _steps(p)[0].update(inputs=["nobody"]),
    "steps in the wrong order": lambda p: _steps(p).reverse(),
    "an output that nobody makes": lambda p: _steps(p)[-1].update(outputs=[]),
    "a missing key": lambda p: _steps(p)[0].pop("segment"),
    "a state for other tiers": lambda p: p["nominal"].update(alive=[True]),
    "a state with words": lambda p: p["nominal"].update(slowdown=["a", "b", "c"]),
    "a state without figures": lambda p: p.pop("nominal"),
    "no pool": lambda p: p.pop("pool"),
    "a pool without plans": lambda p: p["pool"].update(plans=[]),
    "reasons that are none": lambda p: p.update(reasons=[1]),
}


@pytest.mark.parametrize("lie", PLAN_LIES)
def test_plans_that_lie(lie: str, built: Path, tmp_path: Path) -> None:
    unpacked = unpack(built, tmp_path / "cache")
    plans = json.loads((unpacked.folder / PLANS_NAME).read_bytes())
    PLAN_LIES[lie](plans)
    facts = unpacked.manifest.predicate
    forged = tmp_path / "forged.flagsplit"
    members: dict[str, bytes | Path] = {name: unpacked.folder / name for name in facts.sizes}
    members[PLANS_NAME] = json.dumps(plans).encode()
    write_archive(forged, members, lambda sizes: facts.model_copy(update={"sizes": sizes}))
    with pytest.raises(BundleError) as caught:
        flagsplit.open(forged, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_plans_survive_the_way_through_json(built: Path) -> None:
    plans = flagsplit.open(built).plans
    assert PlanSet.from_json(plans.to_json()).to_json() == plans.to_json()


def test_a_bundle_tells_what_it_has_and_what_not(built: Path) -> None:
    opened = flagsplit.open(built)
    assert opened.tiers == ("phone", "edge", "cloud")
    assert opened.tier_index("cloud") == 2
    assert [tensor.name for tensor in (*opened.inputs, *opened.outputs)] == ["x", "y"]
    for wrong in (lambda: opened.tier_index("moon"), lambda: opened.plan("nonsense")):
        with pytest.raises(FlagsplitError, match=r"phone|plan0"):
            wrong()
    from flagsplit.targets.interface import LoadOptions

    with pytest.raises(BundleError, match="no artifact"):
        opened.load(1, "nonsense", LoadOptions())
    whole = opened.load_whole(LoadOptions(threads=1))
    assert whole.run(inputs_of(1))["y"].shape == (2, 24)
    whole.close()


def test_an_artifact_outside_the_bundle_is_refused(built: Path, tmp_path: Path) -> None:
    from flagsplit.targets.interface import LoadOptions

    opened = flagsplit.open(built, cache=tmp_path / "cache")
    entries = opened.facts.tiers[1].artifacts[0].entries
    segment = next(iter(entries))
    entries[segment] = "../../../../../outside.onnx"
    with pytest.raises(BundleError, match="outside the bundle"):
        opened.load(1, segment, LoadOptions())


def test_a_manifest_of_format_1_0_is_read_and_has_no_atoms() -> None:
    data = json.loads(write_manifest({}, facts_of({}, (1, 0))))
    for artifact in (artifact for tier in data["predicate"]["tiers"] for artifact in tier["artifacts"]):
        del artifact["chains"], artifact["weight_bytes"]
    (tier,) = read_manifest(json.dumps(data).encode()).predicate.tiers
    assert (tier.artifacts[0].chains, tier.artifacts[0].weight_bytes) == ({}, {})
