"""A client of the wire protocol in plain pyzmq and msgpack: one request to one worker, for who writes another one.

    python wire_client.py BUNDLE TIER tcp://HOST:PORT IDENTITY.secret SERVER_KEY INPUT.bin OUTPUT.bin SHAPE

It asks for the plan that runs everything on that tier. INPUT.bin holds the bytes of the first input, of shape SHAPE
(such as 1x3x48x320); OUTPUT.bin gets those of the first output. What the words mean is in docs/wire.md.
"""

import hashlib
import json
import os
import sys
import time
import zipfile
import zlib
from pathlib import Path

import msgpack
import zmq

CHUNK_BYTES, HEARTBEAT_S, PATIENCE_S = 256 << 10, 1.0, 60.0
instance = os.urandom(16).hex()


def connect(context, lane, address, secret, server_key):
    socket = context.socket(zmq.DEALER)
    socket.routing_id = f"{instance}:{lane}:1".encode()
    socket.linger = 200
    socket.curve_secretkey, socket.curve_publickey = secret.encode(), zmq.curve_public(secret.encode())
    socket.curve_serverkey = server_key.encode()
    socket.connect(address)
    return socket


def send(socket, code, payload=None, **fields):
    socket.send_multipart([msgpack.packb({"type": code, **fields}), *([payload] if payload is not None else [])])


def receive(control, data, seconds):
    """The next message from either lane, while saying now and then that we are alive."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        ready, _, _ = zmq.select([control, data], [], [], HEARTBEAT_S)
        for socket in ready:
            header, *payload = socket.recv_multipart()
            return msgpack.unpackb(header), payload
        send(control, "PI", seq=0, sent_us=int(time.monotonic() * 1e6))
    sys.exit("no answer in time: is the address right, and our key authorized there?")


def ask(control, data, plan, home, tier, segment, header, output, tensor):
    """Send one tensor to the segment of a tier, and put together what comes back."""
    key = {"sid": instance, "rid": 1, "attempt": 1}
    hops = ((home, "", [header["name"]]), (tier, segment, [output]), (home, "", []))
    route = [dict(zip(("tier", "segment", "carry"), hop, strict=True)) for hop in hops]
    timing = {"tier": home, "segment": "", "wait_us": 0, "run_us": 0, "bytes_in": 0, "bytes_out": len(tensor)}
    way = {"plan": plan, "hop": 1, "route": route, "trace": [timing]}
    send(data, "OP", **key, **way, epoch=0, tensors=[{**header, "size_bytes": len(tensor)}], deadline_ms=60_000)
    for offset in range(0, len(tensor), CHUNK_BYTES):
        part = tensor[offset : offset + CHUNK_BYTES]
        send(data, "CH", part, **key, hop=1, tensor=0, offset=offset, crc32=zlib.crc32(part))
    answer, missing = bytearray(), -1
    while missing:
        message, payload = receive(control, data, PATIENCE_S)
        if message["type"] in ("FA", "RJ", "BY"):
            sys.exit(f"the worker says {message}")
        if message["type"] == "OP":
            answer = bytearray(missing := message["tensors"][0]["size_bytes"])
        elif message["type"] == "CH":
            if zlib.crc32(payload[0]) != message["crc32"]:
                sys.exit("a chunk was damaged on the way")
            answer[message["offset"] : message["offset"] + len(payload[0])] = payload[0]
            missing -= len(payload[0])
    send(control, "DN", sid=instance, rid=1)
    return answer


def main(bundle_path, tier, address, secret_path, server_key, input_path, output_path, shape_text):
    with zipfile.ZipFile(bundle_path) as archive:
        manifest, plans = archive.read("manifest.json"), json.loads(archive.read("plans.json"))
    digest, facts = hashlib.sha256(manifest).hexdigest(), json.loads(manifest)["predicate"]
    plan, (step,) = f"all-{tier}", plans["steps"][f"all-{tier}"]
    secret = Path(secret_path).read_text().strip()
    context = zmq.Context()
    control, data = (connect(context, lane, address, secret, server_key) for lane in "cd")
    send(data, "AT", instance=instance)
    hello = {"version_min": [1, 0], "version_max": [1, 1], "instance": instance, "role": "session", "bundle": digest}
    send(control, "HI", **hello, heartbeat_ms=int(HEARTBEAT_S * 1000))
    welcome, _ = receive(control, data, PATIENCE_S)
    if welcome["type"] != "WE":
        sys.exit(f"the worker says {welcome}")
    header = {**facts["inputs"][0], "shape": [int(size) for size in shape_text.split("x")]}
    home, output, tensor = facts["tiers"][0]["name"], facts["outputs"][0]["name"], Path(input_path).read_bytes()
    Path(output_path).write_bytes(ask(control, data, plan, home, tier, step["segment"], header, output, tensor))
    send(control, "BY", reason="done")
    context.destroy(linger=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
