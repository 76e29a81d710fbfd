"""Decode frames ahead, in threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from .frames import Frame, FrameSource

__all__ = ["prefetch"]

T = TypeVar("T")


def prefetch(source: FrameSource, workers: int, depth: int, transform: Callable[[Frame], T] | None = None) -> Iterator[Frame | T]:
    """Yield the frames of ``source`` in order, decoded ahead by threads.

    Image files are decoded by ``workers`` threads at once; anything else by one thread, since a stream has to be decoded in order.
    An error surfaces when its frame's turn comes. When the iterator is closed or dropped, its threads end.

    Args:
        source: where the frames come from.
        workers: number of threads; 0 decodes in the caller's thread.
        depth: largest number of frames that are ready or under way beyond the one handed out.
        transform: applied to every frame, in the thread that decoded it; its result is yielded in place of the frame.
    """
    if workers > 0 and depth < 1:
        raise ValueError(f"depth ({depth}) must be at least 1.")
    finish = transform or _identity
    if workers <= 0:
        return (finish(frame) for frame in source)
    if source.parallel:
        return _prefetch_pool(source, workers, depth, finish)
    return _prefetch_stream(source, depth, finish)


def _identity(frame: Frame) -> Frame:
    return frame


def _prefetch_pool(source: FrameSource, workers: int, depth: int, finish: Callable[[Frame], T]) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="solotrack-decode")
    pending = deque()
    try:
        for job in source.jobs():
            pending.append(pool.submit(lambda job=job: finish(job())))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prefetch_stream(source: FrameSource, depth: int, finish: Callable[[Frame], T]) -> Iterator[T]:
    ready: queue.Queue = queue.Queue(max(depth - 1, 1))  # (kind, item or error); one more item is in the thread's hands
    stop = threading.Event()

    def decode() -> None:
        try:
            with closing(iter(source)) as frames:
                for frame in frames:
                    ready.put(("frame", finish(frame)))
                    if stop.is_set():
                        return
        except BaseException as error:
            ready.put(("error", error))  # raised again in the caller's thread
        else:
            ready.put(("end", None))

    thread = threading.Thread(target=decode, name="solotrack-decode", daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # the thread may be waiting for room in the queue
            try:
                ready.get_nowait()
            except queue.Empty:
                thread.join(timeout=0.05)
