"""Pieces of work as Ray tasks: retried by Ray where a worker or its machine is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from activations.errors import CaptureError

if TYPE_CHECKING:
    from activations.workers import Task, Workers


def share_on_ray(
    workers: Workers, task: Task, pieces: Sequence[int], done: Callable[[int, Any], object]
) -> None:
    """Have the pieces computed on the cluster at `workers.address`, or on one started for it here.

    Raises:
        CaptureError: Ray is not installed, or the cluster is not there.
        Exception: what a piece raised.
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
            max_calls=0,  # a worker keeps its model from piece to piece
        )(_compute)
        told = ray.put(task)
        todo, running = list(pieces), {}
        while todo or running:
            while todo and len(running) < workers.count:
                piece = todo.pop(0)
                # Ray shows a worker the GPUs that it was given, and no others.
                device = "cuda" if workers.devices and task.gpus else ""
                running[compute.remote(told, piece, device)] = piece
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                piece = running.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    task.lost(piece, f"was lost on the cluster each time it was tried ({error})")
                else:
                    done(piece, answer)
    finally:
        if begun:
            ray.shutdown()


def _compute(task: Task, piece: int, device: str) -> Any:
    from activations.workers import portable

    try:
        return task.compute(piece, device)
    except Exception as error:
        raise portable(error) from None


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
