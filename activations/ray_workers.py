"""Shards of a capture as Ray tasks: retried by Ray where a worker or its machine is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from activations.errors import CaptureError, ModelError, SiteError, StoreError

if TYPE_CHECKING:
    from activations.workers import Task, Workers


def run_on_ray(
    workers: Workers, task: Task, shards: Sequence[int], done: Callable[[int], object]
) -> None:
    """Compute the shards on the cluster at `workers.address`, or on a local one started for it.

    Raises:
        CaptureError: Ray is not installed, the cluster is not there, or a shard was lost each time.
    """
    ray = _ray()
    from activations.workers import MOST_LOSSES

    begun = not ray.is_initialized()
    if begun:
        _connect(ray, workers, task)
    try:
        compute = ray.remote(
            num_cpus=1 if task.gpus else task.threads,
            num_gpus=task.gpus,
            max_retries=MOST_LOSSES - 1,
            max_calls=0,  # a worker keeps its model from shard to shard
        )(_compute)
        told = ray.put(task)
        todo, running = list(shards), {}
        while todo or running:
            while todo and len(running) < workers.count:
                shard = todo.pop(0)
                # Ray shows a worker the GPUs that it was given, and no others.
                device = "cuda" if workers.devices and task.gpus else ""
                running[compute.remote(told, shard, device)] = shard
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                shard = running.pop(reference)
                _result(ray, reference, shard)
                done(shard)
    finally:
        if begun:
            ray.shutdown()


def _compute(task: Task, shard: int, device: str) -> None:
    task.compute(shard, device)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise CaptureError(
            "Ray is not installed: pip install 'isogloss[cluster]', or use engine process."
        ) from None
    return ray


def _connect(ray: Any, workers: Workers, task: Task) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if workers.address:
        options["address"] = workers.address
    else:  # a cluster of this machine only, as wide as asked for
        options |= {"num_cpus": workers.count * task.threads, "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = workers.address or "this machine"
        raise CaptureError(f"No Ray cluster could be used at {where}: {error}") from None


def _result(ray: Any, reference: Any, shard: int) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (CaptureError, ModelError, SiteError, StoreError)):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise CaptureError(
            f"Shard {shard} was lost on the cluster each time it was tried ({error}); run fewer "
            "workers or a smaller token budget. What was captured is kept."
        ) from None
