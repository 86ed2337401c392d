"""The manifests can be parsed, their parts fit each other, and their commands are real. They were never applied."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flagsplit.apps.cli.main import make_app
from flagsplit.apps.decoder_service.gateway_settings import DEFAULT_PORT

FOLDER = Path(__file__).parents[3] / "docs" / "kubernetes"
FILES = ("local.yaml", "ray.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((FOLDER / name).read_text()) if each is not None]


def pods(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each pod's labels and specification."""
    for document in documents(name):
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            yield template["metadata"]["labels"], template["spec"]
        if document["kind"] == "RayCluster":
            labels = {"ray.io/cluster": document["metadata"]["name"]}  # KubeRay's own.
            groups = [document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]]
            yield from ((labels, group["template"]["spec"]) for group in groups)


def commands(name: str) -> list[list[str]]:
    """What follows `flagsplit` in each container."""
    found = []
    for _, pod in pods(name):
        for container in pod["containers"]:
            words = container.get("args", [])
            if container.get("command") == ["sh", "-c"]:
                words = shlex.split(words[0])
                words = words[words.index("flagsplit") + 1 :]
            found += [words] if words else []
    return found


def options(name: str) -> dict[str, Any]:
    """The options of the one `decode-serve` in a file, as the real command line reads them."""
    (words,) = commands(name)
    command: Any = typer.main.get_command(make_app("decode-serve")).commands["decode-serve"]  # type: ignore[attr-defined]
    assert words[0] == "decode-serve"
    parsed: dict[str, Any] = command.make_context("decode-serve", words[1:]).params
    return parsed


@pytest.mark.parametrize("name", FILES)
def test_every_object_says_what_it_is(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in documents(name)]
    assert len(set(names)) == len(names)
    assert all(each["apiVersion"] and each["spec"] for each in documents(name))


@pytest.mark.parametrize("name", FILES)
def test_ports_are_those_that_the_command_listens_at(name: str) -> None:
    said = options(name)
    (front,) = [pod for labels, pod in pods(name) if "app" in labels]
    (container,) = front["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    listening = {"streams": said["listen"], "gateway": said["gateway"], "watching": said["http"]}
    assert ports == {each: int(address.rpartition(":")[2]) for each, address in listening.items()}
    assert ports["gateway"] == DEFAULT_PORT
    for probe in ("readinessProbe", "livenessProbe"):
        page = container.get(probe, container["readinessProbe"])["httpGet"]
        assert (page["port"], page["path"] in ("/readyz", "/healthz")) == ("watching", True)
    (service,) = (each for each in documents(name) if each["kind"] == "Service")
    assert {each["targetPort"] for each in service["spec"]["ports"]} == {"streams", "gateway"}


@pytest.mark.parametrize("name", FILES)
def test_selectors_select(name: str) -> None:
    labels = [each for each, _ in pods(name)]
    for document in documents(name):
        spec = document["spec"]
        if document["kind"] in ("Service", "Deployment"):
            selector = spec["selector"].get("matchLabels", spec["selector"])
            assert selector in labels
        if document["kind"] == "NetworkPolicy":
            sources = [each["podSelector"]["matchLabels"] for each in spec["ingress"][0]["from"]]
            assert all(each in labels for each in (spec["podSelector"]["matchLabels"], *sources))
        if document["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            assert (target["kind"], target["name"]) in [(d["kind"], d["metadata"]["name"]) for d in documents(name)]


@pytest.mark.parametrize("name", FILES)
def test_a_pod_has_more_time_to_end_than_its_streams(name: str) -> None:
    (front,) = [pod for labels, pod in pods(name) if "app" in labels]
    assert front["terminationGracePeriodSeconds"] > options(name)["drain_s"]


@pytest.mark.parametrize("name", FILES)
def test_volumes_are_there_and_nobody_else_reads_secrets(name: str) -> None:
    for _, pod in pods(name):
        there = {each["name"] for each in pod.get("volumes", ())}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            mounted = {each["name"]: each["mountPath"] for each in container.get("volumeMounts", ())}
            assert set(mounted) <= there
        assert all(each["secret"]["defaultMode"] == 0o440 for each in pod.get("volumes", ()) if "secret" in each)
    said = options(name)
    assert all(str(said[each]).startswith("/own/") for each in ("keys", "api_keys", "tls_cert", "tls_key"))


def test_replicas_of_ray_fit_the_cluster() -> None:
    said = options("ray.yaml")
    (cluster,) = (each for each in documents("ray.yaml") if each["kind"] == "RayCluster")
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (said["replicas"], said["max_replicas"])
    assert (said["engine"], said["ray_address"]) == ("ray", "auto")
    cpus = [int(each["resources"]["requests"]["cpu"]) for _, pod in pods("ray.yaml") for each in pod["containers"]]
    assert min(cpus) >= 1
    environments = [pod["containers"][0]["env"] for _, pod in pods("ray.yaml")]
    assert len(environments) == 3
    assert all(each == environments[0] for each in environments)


def test_the_version_of_ray_is_the_extra() -> None:
    import tomllib

    extras = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (cluster,) = (each for each in documents("ray.yaml") if each["kind"] == "RayCluster")
    assert cluster["spec"]["rayVersion"].startswith("2.60.")
    assert extras["ray"] == ["ray[serve]>=2.60,<2.61"]
