"""Ray and Ray Serve, as far as the engine needs them: a cluster, one deployment, calls to its replicas.

All that imports Ray is here. Calls carry dicts of plain values; Ray packs them its own way, between processes of one
operator. Its ports are for the machines of the cluster only: what faces clients is the service and the gateway.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from flagsplit.apps.decoder_service.ray_replica import DecoderReplica, Message
from flagsplit.apps.decoder_service.ray_settings import ROUTER, RaySettings, set_environment
from flagsplit.errors import ConfigError, PeerError
from flagsplit.runtime.generation.admission import SchedulerSettings
from flagsplit.targets.generation.step_model import StepModel

_DEPLOYMENT = "decoder"
_HEALTH_PERIOD_S = 2.0
_HEALTH_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class RayServe:
    """Replicas of a decoder. One user starts and stops them.

    Args:
        open_model: opens the step model in a replica; it must be importable on the hosts of the cluster.
        settings: choices.
        scheduler: of each replica's engine.
    """

    def __init__(
        self,
        open_model: Callable[[], StepModel],
        settings: RaySettings | None = None,
        scheduler: SchedulerSettings | None = None,
    ) -> None:
        self._open_model = open_model
        self._settings = settings or RaySettings()
        self._scheduler = scheduler or SchedulerSettings(max_waiting=self._settings.waiting)
        self._owns_cluster = False
        self._handle: Any = None
        self._lock = threading.Lock()
        self._deployed = 0.0
        self.errors: tuple[type[Exception], ...] = ()

    def start(self) -> None:
        """Join or start the cluster and bring the replicas up.

        Raises:
            ConfigError: Ray is not installed, or the cluster does not answer.
            PeerError: no replica came up in time.
        """
        ray, serve = _import_ray()
        with _signals_kept():
            self._join(ray)
        try:
            from ray.exceptions import RayError  # only here, because Ray is an extra
            from ray.serve.exceptions import RayServeException

            self.errors = (RayError, RayServeException, ConnectionError)
            logging.getLogger("ray.serve").setLevel(logging.ERROR)  # It tells of a dead replica once for each stream.
            serve.start(proxy_location="Disabled")
            self.deploy()
        except BaseException:
            self.stop()
            raise

    def deploy(self, open_model: Callable[[], StepModel] | None = None) -> None:
        """Bring replicas up; those that are there are replaced one after the other, their streams first.

        Raises:
            PeerError: they did not come up.
        """
        _, serve = _import_ray()
        with self._lock:
            self._open_model = open_model or self._open_model
            application = self._deployment(serve).bind(self._open_model, self._scheduler)
            self._handle = self._run(serve, application)
            self._deployed = self._deployed_at(serve)

    def _run(self, serve: Any, application: Any) -> Any:
        """Deploy on a thread of its own: Ray Serve waits without an end for machines that the cluster has not."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(serve.run(application, name=self._settings.name, route_prefix=None))
            except Exception as error:  # noqa: BLE001 - it is raised below
                done.set_exception(error)

        threading.Thread(target=run, name="flagsplit-ray-deploy", daemon=True).start()
        try:
            return done.result(self._settings.start_s)
        except TimeoutError:
            wanted = f"{self._settings.replicas} times {self._settings.cpus:g} CPUs"
            raise PeerError(
                f"no replicas came up within {self._settings.start_s:g} s; ray status tells whether the cluster has "
                f"{wanted} free"
            ) from None
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is told in one line
            raise PeerError(f"no replicas came up: {' '.join(str(error).split())[-300:]}") from None

    def _deployment(self, serve: Any) -> Any:
        from ray.serve.config import RequestRouterConfig  # only here, because Ray is an extra

        settings = self._settings
        here = settings.slots + settings.waiting
        scale: dict[str, Any] = {"num_replicas": settings.replicas}
        if settings.most > settings.replicas:
            scale = {
                "autoscaling_config": {
                    "min_replicas": settings.replicas,
                    "initial_replicas": settings.replicas,
                    "max_replicas": settings.most,
                    # More streams than slots: they queue up.
                    "target_ongoing_requests": settings.slots,
                    "upscale_delay_s": 2.0,
                    "downscale_delay_s": 120.0,
                }
            }
        return serve.deployment(
            DecoderReplica,
            name=_DEPLOYMENT,
            max_ongoing_requests=here,
            max_queued_requests=here * settings.most,
            ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=settings.stop_s,
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=_HEALTH_TIMEOUT_S,
            request_router_config=RequestRouterConfig(request_router_class=ROUTER),
            **scale,
        )

    async def generate(self, stream_id: str, failures: int, message: Message) -> AsyncGenerator[Message, None]:
        """What a replica says of a stream. Closing it cancels the call.

        Args:
            stream_id: streams of one id come to one replica as long as it is there.
            failures: how often it failed in a row: each sends it elsewhere.
            message: see `ray_replica.message_of`.

        Raises:
            Exception: one of `errors`.
        """
        session = f"{stream_id}#{failures}" if failures else stream_id
        responses = self._handle.options(stream=True, session_id=session).generate.remote(message)
        over = False
        try:
            async for found in responses:
                yield found
            over = True
        finally:
            if not over:
                with suppress(*self.errors):
                    responses.cancel()

    async def forget(self, stream_id: str) -> None:
        """A replica need not keep a stream's cache any more."""
        with suppress(*self.errors, asyncio.TimeoutError):
            async with asyncio.timeout(5.0):
                await self._handle.options(session_id=stream_id).forget.remote(stream_id)

    def stop(self) -> None:
        """End the replicas, and the cluster if it was started here. A second call does nothing."""
        if self._handle is None and not self._owns_cluster:
            return
        ray, serve = _import_ray()
        self._handle = None
        if self._owns_cluster:
            self._owns_cluster = False
            serve.shutdown()
            ray.shutdown()
            return
        with suppress(*self.errors):
            # Somebody else may have taken the replicas over.
            if self._deployed_at(serve) == self._deployed:
                serve.delete(self._settings.name)

    def _deployed_at(self, serve: Any) -> float:
        """When replicas were deployed last under this name, by whomever."""
        found = serve.status().applications.get(self._settings.name)
        return float(found.last_deployed_time_s) if found is not None else 0.0

    def _join(self, ray: Any) -> None:
        settings = self._settings
        if ray.is_initialized():
            return
        try:
            if settings.address:
                ray.init(address=settings.address, log_to_driver=False, logging_level=logging.WARNING)
                return
            self._owns_cluster = True
            ray.init(
                num_cpus=max(1, int(settings.most * settings.cpus + 1)),
                object_store_memory=settings.object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            self._owns_cluster = False
            where = settings.address or "on this host"
            raise ConfigError(f"no Ray cluster {where}: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray has SIGTERM end the process at once, but streams are to end before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _import_ray() -> tuple[Any, Any]:
    """Ray and Ray Serve.

    Raises:
        ConfigError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigError('--engine ray needs Ray, which is not installed; pip install "flagsplit[ray]"')
    set_environment()
    import ray  # only here, because Ray is an extra
    from ray import serve

    return ray, serve
