"""`flagsplit keys`: who may talk to whom. Connections are encrypted and mutually authenticated with CURVE."""

from pathlib import Path
from typing import Annotated

import typer

from flagsplit.apps.cli.output import console, print_json, table
from flagsplit.transport.security import KeyStore

app = typer.Typer(help="CURVE keys: your own, the clients allowed in, the servers trusted.")

_Folder = Annotated[Path | None, typer.Option("--keys", help="The key folder; by default under ~/.config/flagsplit.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_KEYS_MAY_START_WITH_A_DASH = {"ignore_unknown_options": True}


@app.command("show")
def show(keys: _Folder = None, as_json: _Json = False) -> None:
    """Show your public key, making it on first use, and whom you know."""
    store = KeyStore(keys)
    if as_json:
        print_json(
            {
                "folder": str(store.directory),
                "public_key": store.public_key,
                "authorized": store.authorized(),
                "admins": store.admins(),
                "workers": store.workers(),
                "known_servers": store.known_servers(),
            }
        )
        return
    out = console()
    out.print(f"key folder  {store.directory}", markup=False, soft_wrap=True)
    out.print(f"public key  {store.public_key}", markup=False, soft_wrap=True)
    kinds = {"admin": store.admins(), "worker": store.workers()}
    rows = [
        (", ".join(kind for kind, names in kinds.items() if name in names) or "client", name, key)
        for name, key in store.authorized().items()
    ]
    rows += [("server", address, key) for address, key in store.known_servers().items()]
    if rows:
        out.print(table("Known", ("", "name or address", "key"), rows, left=3))


@app.command("allow", context_settings=_KEYS_MAY_START_WITH_A_DASH)
def allow(
    name: Annotated[str, typer.Argument(help="What to call the client.")],
    key: Annotated[str, typer.Argument(help="Its public key.")],
    admin: Annotated[bool, typer.Option("--admin", help="It may send and retire bundles too.")] = False,
    worker: Annotated[bool, typer.Option("--worker", help="A worker, which passes on others' requests.")] = False,
    keys: _Folder = None,
) -> None:
    """Let a client use the workers that run with these keys."""
    KeyStore(keys).authorize(name, key, admin=admin, worker=worker)


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="The client's name.")], keys: _Folder = None) -> None:
    """Refuse a client from its next connection on."""
    KeyStore(keys).revoke(name)


@app.command("trust", context_settings=_KEYS_MAY_START_WITH_A_DASH)
def trust(
    address: Annotated[str, typer.Argument(help="Where the worker listens, tcp://HOST:PORT.")],
    key: Annotated[str, typer.Argument(help="The worker's public key.")],
    keys: _Folder = None,
) -> None:
    """Expect a worker's key at an address; without this your own key is expected there."""
    KeyStore(keys).trust(address, key)
